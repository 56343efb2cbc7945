"""The recipes: their gradients are right, they train, and the tool works with them."""

import gc
import random
import re
from unittest import mock

import pytest
import recipes
from conftest import SMALL, TINY, part_1
from recipes import OF_MAIN, RECIPES, changed


def trained(name, steps):
    """The loss of documents, and the parameters that a changed main has trained."""
    gc.disable()  # as the program does
    module = changed(name)
    with mock.patch.object(module, 'Config', return_value=module.Config(1, 8, 2, 4)):
        model = module.main(SMALL, steps, samples=1)
    docs = module.load_docs(SMALL)
    random.seed(42)  # as main does, and for check_gradients()
    random.shuffle(docs)
    tokens = [module.encode(doc, module.vocabulary(docs)) for doc in docs]

    def loss_of(first=4, last=5):
        losses = [module.document_loss(model, x) for x in tokens[first:last]]
        return module.total(losses) / len(losses)

    return loss_of, module.parameters(model)


@pytest.mark.parametrize('name', RECIPES)
def test_its_pieces_are_there_ten_steps_lower_the_loss_and_gradients_are_right(name):
    assert all(part_1().count(old) == 1 for old, _ in RECIPES[name][1])
    assert recipes.lines(name) <= 16
    (loss_before, old), (loss_of, new) = trained(name, 0), trained(name, 10)
    assert loss_of(4, 8).data < loss_before(4, 8).data
    frozen = getattr(changed(name), 'Frozen', ())
    assert all(p.data == q.data for p, q in zip(new, old) if isinstance(p, frozen))
    recipes.check_gradients(loss_of, [p for p in new if not isinstance(p, frozen)])


@pytest.mark.parametrize('slope', ['below', 'below + density', 'x * density'])
def test_a_gelu_with_a_wrong_slope_is_found(slope, monkeypatch):
    right = RECIPES['GELU'][1]
    wrong = [(old, new.replace('below + x * density', slope)) for old, new in right]
    monkeypatch.setitem(RECIPES, slope, ('', wrong))
    with pytest.raises(AssertionError, match='Value'):
        recipes.check_gradients(*trained(slope, 10))


@pytest.mark.parametrize('name', sorted(RECIPES.keys() - set(OF_MAIN)))
def test_the_tool_trains_saves_loads_and_goes_on(name, tmp_path, capsys):
    def cli(*args):
        assert changed(name).cli([*map(str, args)]) == 0
        return capsys.readouterr().out

    path = tmp_path / 'model'
    names = cli(*TINY, '--n-layer', 2, '--save', path, '--inspect', 'abc')
    assert cli('--load', path) == names != ''
    cli('--load', path, '--save', path, '--steps', 14)


def test_gelu_and_rotary_positions_are_what_their_names_say():
    assert changed('GELU').Value(1.0).gelu().data == pytest.approx(0.8413447461)
    rope = changed('RoPE')
    x = [[rope.Value(x_i) for x_i in (1.0, 2.0, 3.0, 4.0)]]
    a, b, c, d = (rope.rotate(x, position)[0] for position in (0, 2, 7, 9))
    near, far, other = (rope.dot(u, v).data for u, v in ((a, b), (c, d), (a, d)))
    assert near == pytest.approx(far) != other  # only the distance counts


def test_the_model_that_is_kept_had_the_lowest_validation_loss(capsys):
    lowest = trained('best', 200)[0](0, 4).data
    losses = [float(line[-6:]) for line in capsys.readouterr().out.split('\n')[1:-2:2]]
    assert min(losses) == round(lowest, 4) < losses[-1] - 0.01


def test_the_command_line_measures_a_recipe(capsys):
    recipes.main(['pairs', '--measure', f'--data={SMALL}', '--steps', '2', '3'])
    row = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r'\| `pairs`: .* \| 12 \| 3\.\d\d \| 3\.\d\d \|', row)
