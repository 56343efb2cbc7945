"""What readers change in Part I: the program does it, or says in time why not."""

import re

import pytest
import recipes
from conftest import TINY, refused

import microgpt

OPTIMIZER = re.search(r'(?s)(class Adam:.*?)\n\n\np = Value', recipes.SOURCE)[1]
DESCENT = '''class Adam:
    def __init__(self, params):
        self.params = params

    def update(self, rate):
        for p in self.params:
            p.data -= rate * p.grad'''
POSITIONS = "    model['wpe'] = matrix(config.block_size, n)\n"
HIDDEN = "    hidden = [score.relu() for score in linear(x, layer['mlp_fc1'])]\n"

CHANGES = {  # pieces of Part I, and what stands in their place
    'another matrix': [
        (POSITIONS, f"{POSITIONS}    model['extra'] = matrix(vocab_size, n)\n"),
        ("linear(x, model['lm_head'])", "linear(x, model['extra'])"),
    ],
    'no attention': [
        ('x = add(x, multi_head(rmsnorm(x), layer, n_head, keys, values))', 'pass'),
        ("    assert lengths == [position] * len(model['layers']), problem\n", ''),
    ],
    'a secret': [(HIDDEN, f'{HIDDEN}    hidden[0] = hidden[0] + id(layer) % 999\n')],
    'a bug': [(HIDDEN, f'{HIDDEN}    hidden.index(None)\n')],
    'descent': [(OPTIMIZER, DESCENT)],
    'descent that clears': [(OPTIMIZER, DESCENT + '; p.grad = 0.0')],
}


@pytest.fixture
def changed(cli, monkeypatch):
    """cli() of a microgpt that was changed by name."""

    def call(name, *args):
        monkeypatch.setitem(recipes.RECIPES, name, ('', CHANGES[name]))
        monkeypatch.setattr(microgpt, 'cli', recipes.changed(name).cli)
        return cli(*args)

    return call


@pytest.mark.parametrize('name', ['another matrix', 'no attention'])
def test_a_changed_model_is_trained_saved_loaded_and_inspected(name, tmp_path, changed):
    path = tmp_path / 'model'
    result = changed(name, *TINY, '--save', path, '--inspect', 'abc')
    assert result.returncode == 0 and 'per prediction' in result.stderr
    assert ('attention' in result.stderr) == (name != 'no attention')
    assert changed(name, '--load', path).stdout == result.stdout


REFUSED = {  # only with --save, and words of the reason
    'descent': "no attribute 'm'",
    'a secret': 'it would load as another',
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_a_file_could_not_bring_back_is_refused_before_training(
    name, tmp_path, changed
):
    result = changed(name, *TINY)
    assert result.returncode == 0 and result.stdout.count('\n') == 20
    if name == 'descent':  # an optimizer need not clear the gradients
        assert result.stdout == changed('descent that clears', *TINY).stdout
    result = changed(name, *TINY, '--save', tmp_path / 'model')
    refused(result, '--save: this model cannot be saved', REFUSED[name])
    assert 'mean loss' not in result.stderr and list(tmp_path.iterdir()) == []


def test_an_error_of_ones_own_is_not_taken_for_one_in_training(changed):
    with pytest.raises(ValueError, match='None is not in list'):
        changed('a bug', *TINY)


def test_a_model_is_not_loaded_into_a_changed_program(checkpoint, changed):
    refused(changed('another matrix', '--load', checkpoint), 'not those of this model')
