"""What readers change in Part I: the program does it, or says in time why not.

Recipes have their own tests; here is what a checkpoint and a picture need of Part I.
"""

import re
import types

import pytest
from conftest import SCRIPT, TINY, refused

SOURCE = SCRIPT.read_text('utf-8')
OPTIMIZER = re.search(r'(?s)(class Adam:.*?)\n\n\np = Value', SOURCE)[1]
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
    'descent': [(OPTIMIZER, DESCENT)],
    'descent that clears': [(OPTIMIZER, DESCENT + '; p.grad = 0.0')],
}


@pytest.fixture
def changed(capsys):
    """cli() of a microgpt that was changed, as conftest.cli."""

    def call(name, *args):
        source = SOURCE
        for old, new in CHANGES[name]:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        module = types.ModuleType('changed')
        exec(source, module.__dict__)
        capsys.readouterr()
        status = module.cli(list(map(str, args)))
        out, err = capsys.readouterr()
        return types.SimpleNamespace(returncode=status, stdout=out, stderr=err)

    return call


@pytest.mark.parametrize('name', ['another matrix', 'no attention'])
def test_a_changed_model_is_trained_saved_loaded_and_inspected(name, tmp_path, changed):
    path = tmp_path / 'model'
    result = changed(name, *TINY, '--save', path, '--inspect', 'abc')
    assert result.returncode == 0 and 'per character' in result.stderr
    assert ('attention' in result.stderr) == (name != 'no attention')
    assert changed(name, '--load', path).stdout == result.stdout


REFUSED = {  # only with --save, and words of the reason
    'descent': "no attribute 'm'",
    'a secret': 'another would come back',
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_a_file_could_not_bring_back_is_refused_before_training(
    name, tmp_path, changed
):
    result = changed(name, *TINY)
    assert result.returncode == 0 and result.stdout.count('\n') == 20
    result = changed(name, *TINY, '--save', tmp_path / 'model')
    refused(result, '--save: this model cannot be saved', REFUSED[name])
    assert 'step 1' not in result.stderr and list(tmp_path.iterdir()) == []


def test_an_optimizer_need_not_clear_the_gradients(changed):
    names = {changed(name, *TINY).stdout for name in ('descent', 'descent that clears')}
    assert len(names) == 1


def test_a_model_is_not_loaded_into_a_changed_program(checkpoint, changed):
    refused(changed('another matrix', '--load', checkpoint), 'not those of this model')
