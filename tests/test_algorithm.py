"""Part I: the same numbers as the reference, right gradients, a Value that behaves."""
import doctest
import gc
import math
import random

import pytest
from conftest import SCRIPT, SMALL, Run, run

import microgpt
from microgpt import Adam, Config, Value


@pytest.mark.parametrize('name', ['small', 'unicode'])
def test_a_run_gives_the_numbers_of_the_reference(name):
    run = Run(name)
    reference, settings = run.reference, run.reference['config']
    assert run.docs[:5] == reference['first_docs'] and len(run.docs) == reference['num_docs']
    assert len(run.chars) + 1 == reference['vocab_size']
    assert len(run.params) == reference['num_params']
    for i, number in reference['initial_params'].items():
        assert run.params[int(i)].data == pytest.approx(number, rel=1e-12)
    _, gradients = run.gradients_at(0)
    for i, number in reference['first_step_gradients'].items():
        assert gradients[int(i)] == pytest.approx(number, rel=1e-12)
    norm = math.sqrt(sum(g * g for g in gradients))
    assert norm == pytest.approx(reference['first_step_gradient_norm'], rel=1e-12)
    steps = microgpt.train(Adam(run.params), run.gradients_at, settings['num_steps'],
                           settings['learning_rate'])
    assert [loss for _, loss in steps] == pytest.approx(reference['losses'], rel=1e-9)
    trained = microgpt.plain(run.model)
    names = []
    for _ in reference['samples']:
        tokens = microgpt.sample(trained, run.config, lambda logits: microgpt.draw(
            logits, run.rng, settings['temperature']))
        names.append(''.join(run.chars[token] for token in tokens))
    assert names == reference['samples']


def test_the_program_prints_the_names_of_the_reference():
    settings = {'steps': 60, 'seed': 7, 'learning-rate': 0.02, 'n-layer': 2, 'n-embd': 12, 'n-head': 3,
                'block-size': 6, 'temperature': 0.8, 'val-fraction': 0,
                'data': SMALL.with_name('unicode.txt')}
    result = run(*(f'--{name}={value}' for name, value in settings.items()))
    assert result.stdout.splitlines() == Run('unicode').reference['samples']


def test_part_1_alone_trains_and_samples(tmp_path, capsys, monkeypatch):
    part_1, rest = SCRIPT.read_text('utf-8').split('# %% Part II', 1)
    assert rest and len(part_1.splitlines()) < 400
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'input.txt').write_text(SMALL.read_text('utf-8'), encoding='utf-8')
    namespace = {'__name__': 'part_1'}
    exec(part_1, namespace)
    namespace['run'](steps=100, samples=20)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == 'step  100 / 100 | loss 2.1340'
    assert printed[1:] == Run('small').reference['samples']


def test_the_examples_in_docstrings_are_right():
    assert doctest.testmod(microgpt).failed == 0


# ---- Value -------------------------------------------------------------------------------------

def slope(function, numbers, i):
    """The derivative of a function of floats by its i-th argument, by central differences."""
    step = 1e-6 * max(1.0, abs(numbers[i]))
    ends = []
    for sign in (1, -1):
        moved = list(numbers)
        moved[i] += sign * step
        ends.append(function(*moved))
    return (ends[0] - ends[1]) / (2 * step)


OPERATIONS = {
    'a + b': lambda a, b: a + b, 'a + 2': lambda a, b: a + 2, '2 + a': lambda a, b: 2 + a,
    'a - b': lambda a, b: a - b, 'a - 2': lambda a, b: a - 2, '2 - a': lambda a, b: 2 - a,
    'a * b': lambda a, b: a * b, 'a * 3': lambda a, b: a * 3, '3 * a': lambda a, b: 3 * a,
    'a / b': lambda a, b: a / b, 'a / 3': lambda a, b: a / 3, '3 / a': lambda a, b: 3 / a,
    'a ** b': lambda a, b: a ** b, 'a ** 3': lambda a, b: a ** 3, '3 ** a': lambda a, b: 3 ** a,
    'a ** -0.5': lambda a, b: a ** -0.5, '-a': lambda a, b: -a, 'a * a': lambda a, b: a * a,
    'exp': lambda a, b: microgpt.exp(a), 'relu': lambda a, b: microgpt.relu(a - b),
    'relu below 0': lambda a, b: microgpt.relu(b - a),
    'log': lambda a, b: a.log() if isinstance(a, Value) else math.log(a),
    'linear': lambda a, b: microgpt.total(microgpt.linear([a, b, a], [[b, b, a], [a, b, b]])),
    'total': lambda a, b: microgpt.total([a, b, a]) * a,
    'softmax': lambda a, b: microgpt.softmax([a, b, a * b])[2],
    'rmsnorm': lambda a, b: microgpt.rmsnorm([a, b, a * b])[2],
    'cross_entropy': lambda a, b: microgpt.cross_entropy([a, b, a * b], 1),
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_has_the_value_and_the_slopes_of_its_function(name):
    function, numbers = OPERATIONS[name], [1.7, 0.6]
    values = [Value(number) for number in numbers]
    result = function(*values)
    result.backward()
    assert result.data == pytest.approx(function(*numbers), rel=1e-12)
    for i, value in enumerate(values):
        assert value.grad == pytest.approx(slope(function, numbers, i), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize('seed', range(20))
def test_random_expressions_with_shared_parts_have_right_gradients(seed):
    numbers = [0.6 + 0.4 * i + 0.01 * seed for i in range(4)]

    def expression(*leaves):
        rng, pool = random.Random(seed), list(leaves)
        for _ in range(25):
            a, b = rng.choice(pool), rng.choice(pool)
            pool.append(rng.choice([
                lambda: a + b, lambda: a - b, lambda: a * b * 0.5, lambda: a / (b * b + 1),
                lambda: microgpt.exp(a * 0.1), lambda: microgpt.relu(a) + 0.1 * b,
                lambda: (a * a + 0.5) ** -0.5, lambda: microgpt.softmax([a, b, 1.0 * a - b])[0],
                lambda: microgpt.linear([a, b], [[b, a]])[0], lambda: microgpt.total([a, b, a])])())
        return microgpt.total(pool[-6:])

    values = [Value(number) for number in numbers]
    expression(*values).backward()
    for i, value in enumerate(values):
        assert value.grad == pytest.approx(slope(expression, numbers, i), rel=1e-5, abs=1e-6)


def test_the_loss_of_the_model_has_right_gradients_in_every_matrix():
    config = Config(n_layer=2, n_embd=6, n_head=2, block_size=5)
    run = Run(docs=['abcab', 'bcd'], config=config)
    tokens, rng = run.tokens(0), random.Random(1)
    _, gradients = run.gradients_at(0)
    gradient_of = dict(zip(run.params, gradients))
    for name, matrix in run.model.items():
        used = [value for row in matrix for value in row if gradient_of[value]]
        assert used, name
        for value in rng.sample(used, 6):
            def loss(number):
                before, value.data = value.data, number
                losses = microgpt.document_losses(microgpt.plain(run.model), config, tokens)
                value.data = before
                return sum(losses) / len(losses)
            assert gradient_of[value] == pytest.approx(slope(loss, [value.data], 0), rel=1e-5, abs=1e-8)


def test_gradients_add_up_on_leaves_and_only_there():
    a, b = Value(2.0), Value(3.0)
    product = a * b
    first, second = product + a, product * 2           # two results, built before the first backward
    first.backward()
    assert (a.grad, b.grad) == (4.0, 2.0)
    second.backward()
    assert (a.grad, b.grad) == (4.0 + 6.0, 2.0 + 4.0)
    second.backward()                                  # again: the same once more, and no more
    assert (a.grad, b.grad) == (16.0, 10.0)
    assert product.grad == 2.0
    a.backward()
    assert a.grad == 17.0


def test_a_chain_of_100_000_operations_is_no_problem():
    leaf = value = Value(1.0)
    for _ in range(100_000):
        value = value + 1
    value.backward()
    assert (value.data, leaf.grad) == (100_001.0, 1.0)
    del value                                          # and neither is forgetting it


def test_a_weighted_sum_is_one_node_with_the_gradient_of_many():
    x, w = [[Value(random.Random(seed + i).random()) for i in range(5)] for seed in (0, 9)]
    one = microgpt.linear(x, [w])[0]
    assert len(one.graph()) == 1
    one.backward()
    gradients = [value.grad for value in x + w]
    many = sum(x_i * w_i for x_i, w_i in zip(x, w))
    for value in x + w:
        value.grad = 0.0
    many.backward()
    assert len(many.graph()) == 10
    assert [value.grad for value in x + w] == pytest.approx(gradients, rel=1e-15)


def test_a_value_shows_its_number_and_its_gradient():
    assert repr(Value(0.5)) == 'Value(data=0.5, grad=0.0)'


# ---- the model ---------------------------------------------------------------------------------

def test_softmax_survives_large_scores_and_sums_to_one():
    assert sum(microgpt.softmax([1000.0, 999.0, -5000.0])) == pytest.approx(1)
    assert microgpt.softmax([1e4, 0.0]) == [1.0, 0.0]


def test_values_and_floats_give_the_same_losses():
    run = Run('small')
    with_values = microgpt.document_losses(run.model, run.config, run.tokens(0))
    with_floats = microgpt.document_losses(microgpt.plain(run.model), run.config, run.tokens(0))
    assert all(type(loss) is float for loss in with_floats)
    assert [loss.data for loss in with_values] == pytest.approx(with_floats, rel=1e-12)


def test_no_position_sees_a_later_one():
    run = Run('small')
    model = microgpt.plain(run.model)

    def logits(tokens):
        cache = microgpt.new_cache(run.config)
        return [microgpt.gpt(model, token, i, cache) for i, token in enumerate(tokens)]
    assert logits([26, 4, 12, 0])[:3] == logits([26, 4, 12, 7])[:3]
    assert logits([26, 4, 12, 0])[3] != logits([26, 4, 12, 7])[3]


def test_training_pauses_the_garbage_collector_and_restores_it_whatever_happens():
    run = Run('small')
    assert gc.isenabled()
    steps = microgpt.train(Adam(run.params), run.gradients_at, 3)
    next(steps)
    assert not gc.isenabled()
    steps.close()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        list(microgpt.train(Adam(run.params), lambda step: 1 / 0, 3))
    assert gc.isenabled()
