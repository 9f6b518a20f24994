"""A Flower client in the shape of Flower's PyTorch quickstart: it knows nothing of mpcfl."""

import torch
from flwr.client import ClientApp, NumPyClient
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """Two layers for images of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 32)
        self.output = nn.Linear(32, 10)

    def forward(self, images):
        return self.output(torch.relu(self.hidden(images)))


def load_data(partition_id, num_partitions):
    """Return loaders of one partition's own images, and of the public ones."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32) / 16
    labels = torch.tensor(labels)
    is_public = torch.arange(len(labels)) % 5 == 0
    own = slice(partition_id, None, num_partitions)
    train_set = TensorDataset(images[~is_public][own], labels[~is_public][own])
    test_set = TensorDataset(images[is_public], labels[is_public])
    return DataLoader(train_set, batch_size=32), DataLoader(test_set, batch_size=64)


def train(net, loader, epochs):
    """Train in place; return the mean loss of the last epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net.train()
    for _ in range(epochs):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(loader)


def test(net, loader):
    """Return loss and accuracy."""
    net.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for images, labels in loader:
            outputs = net(images)
            loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
            right += (outputs.argmax(dim=1) == labels).sum().item()
    return loss / len(loader.dataset), right / len(loader.dataset)


def get_weights(net):
    return [value.cpu().numpy() for value in net.state_dict().values()]


def set_weights(net, arrays):
    names = net.state_dict().keys()
    net.load_state_dict({name: torch.tensor(a) for name, a in zip(names, arrays, strict=True)})


class FlowerClient(NumPyClient):
    def __init__(self, net, train_loader, test_loader, local_epochs):
        self.net, self.local_epochs = net, local_epochs
        self.train_loader, self.test_loader = train_loader, test_loader

    def get_parameters(self, config):
        return get_weights(self.net)

    def fit(self, parameters, config):
        set_weights(self.net, parameters)
        loss = train(self.net, self.train_loader, self.local_epochs)
        return get_weights(self.net), len(self.train_loader.dataset), {"train_loss": loss}

    def evaluate(self, parameters, config):
        set_weights(self.net, parameters)
        loss, accuracy = test(self.net, self.test_loader)
        return loss, len(self.test_loader.dataset), {"accuracy": accuracy}


def client_fn(context):
    """Make the client of one partition."""
    partition_id = context.node_config["partition-id"]
    num_partitions = context.node_config["num-partitions"]
    loaders = load_data(partition_id, num_partitions)
    return FlowerClient(Net(), *loaders, context.run_config["local-epochs"]).to_client()


app = ClientApp(client_fn=client_fn)
