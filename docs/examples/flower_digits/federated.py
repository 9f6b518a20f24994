"""The client of client.py as a task of mpcfl: what Flower's server would know, and no more."""

from client import Net, client_fn, get_weights, load_data, set_weights, test

import mpcfl


def initial_parameters():
    return get_weights(Net())


def evaluate_fn(server_round, parameters, config):
    net = Net()
    set_weights(net, parameters)
    _, public_images = load_data(0, 1)
    loss, accuracy = test(net, public_images)
    return loss, {"accuracy": accuracy}


def digits(**run_config):
    return mpcfl.FlowerTask(client_fn, initial_parameters, evaluate_fn, **run_config)
