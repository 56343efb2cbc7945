"""What readers change in Part I: the program does it, or says in time why not."""

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

MATRIX = "    model['wpe'] = matrix(config.block_size, n)\n"
SUM = "add(model['wte'][token], model['wpe'][position])"
LAYER = "            'attn_wq': matrix(n, n),\n"
TIED = "model['lm_head'] = model['wte']"
MLP = 'x = add(x, mlp(rmsnorm(x), layer))'
EXPERTS = "            'experts': [{'up': matrix(n, n)}, {'up': matrix(n, n)}],\n"
GAIN = "            'gain': [Value(1.0) for _ in range(n)],\n"

# pieces of Part I, and what stands in their place
CHANGES = {
    'no positions': [(MATRIX, ''), (SUM, "model['wte'][token]")],
    'another matrix': [
        (MATRIX, f"{MATRIX}    model['extra'] = matrix(vocab_size, n)\n"),
        ("return linear(x, model['lm_head'])", "return linear(x, model['extra'])"),
    ],
    'a tied matrix': [("model['lm_head'] = matrix(vocab_size, n)", TIED)],
    'a vector': [
        (LAYER, GAIN + LAYER),
        (MLP, f"{MLP}; x = [x_i * g for x_i, g in zip(x, layer['gain'])]"),
    ],
    'experts': [
        (LAYER, EXPERTS + LAYER),
        (MLP, f"{MLP}; x = linear(x, layer['experts'][position % 2]['up'])"),
    ],
    'no attention': [
        ('        x = add(x, multi_head(rmsnorm(x), layer, n_head, keys, values))\n', ''),
        ("    assert lengths == [position] * len(model['layers']), problem\n", ''),
    ],
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


@pytest.mark.parametrize('name', [name for name in CHANGES if 'descent' not in name])
def test_a_changed_model_is_trained_saved_loaded_and_inspected(name, tmp_path, changed):
    path = tmp_path / 'model'
    result = changed(name, *TINY, '--save', path, '--inspect', 'abc', '--samples', 5)
    assert result.returncode == 0, result.stderr
    assert changed(name, '--load', path).stdout == result.stdout
    more = changed(name, '--load', path, '--save', path, '--steps', 14)
    assert more.returncode == 0 and 'step 14 / 14' in more.stderr
    assert ('attention' in result.stderr) == (name != 'no attention')


def test_a_model_is_not_loaded_into_a_changed_program(checkpoint, changed):
    refused(changed('another matrix', '--load', checkpoint), 'not those of this model')


def test_an_optimizer_without_m_and_v_is_used_and_refused_only_with_save(
    tmp_path, changed
):
    result = changed('descent', *TINY)
    assert result.returncode == 0 and result.stdout.count('\n') == 20
    assert result.stdout == changed('descent that clears', *TINY).stdout
    result = changed('descent', *TINY, '--save', tmp_path / 'model')
    refused(result, '--save: this model cannot be saved', "no attribute 'm'")
    assert 'step 1' not in result.stderr and list(tmp_path.iterdir()) == []


def test_a_changed_mlp_changes_what_the_program_trains(cli, monkeypatch):
    import microgpt

    plain = cli(*TINY)
    monkeypatch.setattr(microgpt, 'mlp', lambda x, layer: [x_i * 0 for x_i in x])
    assert cli(*TINY).stderr.split('steps/s')[0] != plain.stderr.split('steps/s')[0]
