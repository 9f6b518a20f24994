"""The trained model in the form of its ecosystem: a folder that plain transformers, or peft, load.

Nothing in the folder needs mpcfl. Its README says how a text is scored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpcfl.learn.text.features import FeatureScale
from mpcfl.learn.text.models import FeatureHead
from mpcfl.learn.text.options import TextOptions
from mpcfl.learn.text.pretrained import Pretrained

_USE = """# A classifier of texts

Trained by mpcfl; what it cost in privacy stands in `run.json` of its run. Base: {base}.

A text's scores are the mean of its tokens' scores. {needs}

```python
import torch
from transformers import AutoTokenizer
{imports}
tokenizer = AutoTokenizer.from_pretrained(".")
model = {load}
texts = ["What a film!"]
tokens = tokenizer(
    texts, truncation=True, max_length={max_tokens}, padding=True, return_tensors="pt"
)
mask = tokens["attention_mask"].unsqueeze(-1)
with torch.no_grad():
    scores = (model(**tokens).logits * mask).sum(1) / mask.sum(1)
print([model.config.id2label[int(row.argmax())] for row in scores])
```
"""
_PLAIN = {
    "needs": "It needs transformers.",
    "imports": "from transformers import AutoModelForTokenClassification\n",
    "load": 'AutoModelForTokenClassification.from_pretrained(".").eval()',
}
_ADAPTED = {
    "needs": "It needs transformers and peft; the base comes from the Hugging Face hub, or from\n"
    "the folder that you put in the place of its name.",
    "imports": "from transformers import AutoModelForTokenClassification\n"
    "from peft import PeftModel\n",
    "load": """PeftModel.from_pretrained(
    AutoModelForTokenClassification.from_pretrained("{base}", num_labels={labels}), "."
).eval()""",
}


@torch.no_grad()
def with_head(pretrained: Pretrained, head: FeatureHead, scale: FeatureScale) -> nn.Module:
    """Return a classifier of tokens that has this head on its frozen encoder.

    Args:
        pretrained: the encoder.
        head: as it was trained, on scaled features.
        scale: of the features; goes into the head, which then takes them as they are.
    """
    network: Any = pretrained.classifier(head.classifier.out_features)
    weight = head.classifier.weight.double()
    centre, spread = scale.centre.double(), scale.spread.double()
    network.classifier.weight.copy_(weight / spread)
    network.classifier.bias.copy_(head.classifier.bias.double() - weight @ (centre / spread))
    classifier: nn.Module = network
    return classifier


def save_classifier(
    network: Any, pretrained: Pretrained, options: TextOptions, folder: Path
) -> None:
    """Write a classifier of tokens, or its adapters, with tokenizer and README.

    Args:
        network: one of transformers' models, or peft's adapters on one.
        pretrained: what it began as.
        options: of the task.
        folder: is made.
    """
    folder.mkdir(exist_ok=True)
    # No vocabulary was changed; unless told so, peft asks the hub whether.
    more = {"save_embedding_layers": False} if options.train == "lora" else {}
    network.save_pretrained(folder, safe_serialization=True, **more)
    pretrained.tokenizer(options.keep).save_pretrained(folder)
    words = _ADAPTED if options.train == "lora" else _PLAIN
    base = pretrained.name
    filled = {key: text.replace("{base}", base) for key, text in words.items()}
    filled["load"] = filled["load"].replace("{labels}", str(options.labels))
    readme = _USE.format(base=base, max_tokens=options.max_tokens, **filled)
    (folder / "README.md").write_text(readme, encoding="utf-8")
