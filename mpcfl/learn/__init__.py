"""The learning half of a round: tasks, local training, the server step, public evaluation."""
