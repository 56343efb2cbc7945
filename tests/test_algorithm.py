"""Part I: the figures of the reference, right gradients, and a Value that behaves."""

import ast
import math
import random
import sys
import types

import pytest
from conftest import SMALL, UNICODE, Run, part_1, run

import microgpt
from microgpt import Config, Value

# ---- the reference -----------------------------------------------------------


@pytest.mark.parametrize('name', ['small', 'unicode'])
def test_parameters_gradients_losses_and_names_are_those_of_the_reference(name):
    run = Run(name)
    reference = run.reference
    params = run.adam.params
    assert (
        run.docs[:5] == reference['first_docs']
        and len(run.docs) == reference['num_docs']
    )
    assert (len(run.vocab), len(params)) == (
        reference['vocab_size'],
        reference['num_params'],
    )
    for i, number in reference['initial_params'].items():
        assert params[int(i)].data == pytest.approx(number, rel=1e-12)
    run.loss_at(0).backward()
    for i, number in reference['first_step_gradients'].items():
        assert params[int(i)].grad == pytest.approx(number, rel=1e-12)
    norm = math.sqrt(sum(p.grad**2 for p in params))
    assert norm == pytest.approx(reference['first_step_gradient_norm'], rel=1e-12)
    losses = run.train(run.settings['num_steps'])
    assert losses == pytest.approx(reference['losses'], rel=1e-9)

    def choose(logits):
        return microgpt.draw(logits, run.settings['temperature'], run.rng)

    for expected in reference['samples']:
        assert microgpt.sample(run.model, run.config, run.vocab, choose) == expected


def test_the_program_prints_the_names_of_the_reference():
    options = (
        '--steps 60 --seed 7 --learning-rate 0.02 --n-layer 2 --n-embd 12 --n-head 3'
    )
    options += ' --block-size 6 --temperature 0.8 --val-fraction 0'
    result = run(*options.split(), '--data', UNICODE)
    assert result.stdout.splitlines() == Run('unicode').reference['samples']


# ---- Part I alone ------------------------------------------------------------


def test_part_1_alone_trains_and_writes_the_names_of_the_reference(capsys):
    alone = types.ModuleType('part_1')
    exec(part_1(), alone.__dict__)
    alone.main(SMALL, steps=100)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith('step    1 / 100 | loss ')
    assert printed[1] == 'step  100 / 100 | loss 2.1340'
    assert printed[2:] == Run('small').reference['samples']


def test_main_uses_every_function_and_every_statement_of_part_1():
    tree = ast.parse(part_1())
    code = compile(tree, 'part_1.py', 'exec')
    alone = types.ModuleType('part_1')
    exec(code, alone.__dict__)
    executed = set()

    def trace(frame, event, _):
        if frame.f_code.co_filename != 'part_1.py':
            return None
        executed.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        alone.main(SMALL, steps=2, samples=20)
    finally:
        sys.settrace(None)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        if function.name.startswith('__'):
            continue  # Value's operators are for people to play with
        for statement in ast.walk(function):
            is_docstring = isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant
            )
            if isinstance(statement, ast.stmt) and not is_docstring:
                assert statement.lineno in executed, (function.name, statement.lineno)


def test_what_a_reader_changes_in_part_1_the_program_does(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(microgpt, 'mlp', lambda x, layer: [x_i * 0 for x_i in x])
    assert microgpt.cli(['--data', str(SMALL), '--steps', '2', '--samples', '1']) == 0
    changed = capsys.readouterr().err
    monkeypatch.undo()
    assert microgpt.cli(['--data', str(SMALL), '--steps', '2', '--samples', '1']) == 0
    assert 'step 2 / 2 | loss 3.' in changed and changed != capsys.readouterr().err


# ---- Value -------------------------------------------------------------------


def slope(function, numbers, i):
    """The derivative with respect to the i-th argument, by differences."""
    step = 1e-6 * max(1.0, abs(numbers[i]))
    ends = []
    for sign in (1, -1):
        moved = list(numbers)
        moved[i] += sign * step
        ends.append(function(*map(Value, moved)).data)
    return (ends[0] - ends[1]) / (2 * step)


# What is computed from Values a and b, and the same from numbers.
OPERATIONS = {
    'a + b': (lambda a, b: a + b, lambda a, b: a + b),
    'a + 2': (lambda a, b: a + 2, lambda a, b: a + 2),
    '2 + a': (lambda a, b: 2 + a, lambda a, b: 2 + a),
    'a - b': (lambda a, b: a - b, lambda a, b: a - b),
    'a - 2': (lambda a, b: a - 2, lambda a, b: a - 2),
    '2 - a': (lambda a, b: 2 - a, lambda a, b: 2 - a),
    'a * b': (lambda a, b: a * b, lambda a, b: a * b),
    'a * a': (lambda a, b: a * a, lambda a, b: a * a),
    '3 * a': (lambda a, b: 3 * a, lambda a, b: 3 * a),
    'a / b': (lambda a, b: a / b, lambda a, b: a / b),
    'a / 3': (lambda a, b: a / 3, lambda a, b: a / 3),
    '3 / a': (lambda a, b: 3 / a, lambda a, b: 3 / a),
    'a ** 3': (lambda a, b: a ** 3, lambda a, b: a ** 3),
    'a ** -0.5': (lambda a, b: a ** -0.5, lambda a, b: a ** -0.5),
    '-a': (lambda a, b: -a, lambda a, b: -a),
    'exp': (lambda a, b: a.exp(), lambda a, b: math.exp(a)),
    'log': (lambda a, b: a.log(), lambda a, b: math.log(a)),
    'relu above 0': (lambda a, b: (a - b).relu(), lambda a, b: a - b),
    'relu below 0': (lambda a, b: (b - a).relu(), lambda a, b: 0),
    'dot': (
        lambda a, b: microgpt.dot([a, b, a], [b, b, a]),
        lambda a, b: a * b + b * b + a * a,
    ),
    'dot with itself': (
        lambda a, b: microgpt.dot([a, b], [a, b]),
        lambda a, b: a * a + b * b,
    ),
    'total': (lambda a, b: microgpt.total([a, b, a]), lambda a, b: 2 * a + b),
    'softmax': (
        lambda a, b: microgpt.softmax([a, b])[1],
        lambda a, b: math.exp(b) / (math.exp(a) + math.exp(b)),
    ),
    'rmsnorm': (
        lambda a, b: microgpt.rmsnorm([a, b])[1],
        lambda a, b: b / math.sqrt((a * a + b * b) / 2 + 1e-5),
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', OPERATIONS)
def test_every_operation_has_the_value_and_the_slopes_of_its_function(name):
    function, plain = OPERATIONS[name]
    a, b = Value(1.7), Value(0.6)
    result = function(a, b)
    result.backward()
    assert result.data == pytest.approx(plain(1.7, 0.6), rel=1e-12)
    assert a.grad == pytest.approx(slope(function, [1.7, 0.6], 0), rel=1e-7, abs=1e-9)
    assert b.grad == pytest.approx(slope(function, [1.7, 0.6], 1), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize('seed', range(10))
def test_random_expressions_with_shared_parts_have_right_gradients(seed):
    numbers = [0.6 + 0.4 * i + 0.01 * seed for i in range(4)]

    def expression(*leaves):
        rng, pool = random.Random(seed), list(leaves)
        for _ in range(25):
            a, b = rng.choice(pool), rng.choice(pool)
            kinds = [
                lambda a, b: a + b,
                lambda a, b: a - b,
                lambda a, b: a * b * 0.5,
                lambda a, b: a / (b * b + 1),
                lambda a, b: (a * 0.1).exp(),
                lambda a, b: a.relu() + 0.1 * b,
                lambda a, b: (a * a + 0.5) ** -0.5,
                lambda a, b: microgpt.softmax([a, b, 1.0 * a - b])[0],
                lambda a, b: microgpt.dot([a, b], [b, a]),
                lambda a, b: microgpt.total([a, b, a]),
            ]
            pool.append(rng.choice(kinds)(a, b))
        return microgpt.total(pool[-6:])

    values = [Value(number) for number in numbers]
    expression(*values).backward()
    for i, value in enumerate(values):
        assert value.grad == pytest.approx(
            slope(expression, numbers, i), rel=1e-5, abs=1e-6
        )


def test_the_loss_of_the_model_has_right_gradients_in_every_matrix():
    run = Run(
        'small', Config(n_layer=2, n_embd=6, n_head=2, block_size=5), ['abcab', 'bcd']
    )
    rng = random.Random(1)
    run.loss_at(0).backward()
    for name, matrix in microgpt.tensors(run.model).items():
        used = [value for row in matrix for value in row if value.grad]
        assert used, name
        for value in rng.sample(used, 6):
            losses = []
            number = value.data
            for value.data in (number + 1e-6, number - 1e-6):
                losses.append(run.loss_at(0).data)
            value.data = number
            expected = (losses[0] - losses[1]) / 2e-6
            assert value.grad == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_gradients_add_up_on_leaves_and_only_there():
    a, b = Value(2.0), Value(3.0)
    product = a * b
    first, second = product + a, product * 2  # two results, before the first backward()
    first.backward()
    assert (a.grad, b.grad, product.grad) == (4.0, 2.0, 1.0)
    second.backward()
    assert (a.grad, b.grad, product.grad) == (4.0 + 6.0, 2.0 + 4.0, 2.0)
    second.backward()  # again: the same once more
    assert (a.grad, b.grad, product.grad) == (16.0, 10.0, 2.0)
    third = second + a  # an extension of a result that has had its backward()
    third.backward()
    assert (a.grad, b.grad) == (16.0 + 7.0, 10.0 + 4.0)


def test_a_forgotten_tape_ends_the_way_back_and_nothing_else():
    a = Value(2.0)
    square = a * a
    Value.tape.clear()
    result = square * 3 + a
    result.backward()
    assert (result.data, square.grad, a.grad) == (14.0, 3.0, 1.0)


def test_parameters_and_numbers_never_stand_on_the_tape():
    Value.tape.clear()
    result = 2 * Value(1.0) + 1
    assert len(Value.tape) == 2 and Value.tape[-1] is result


def test_a_chain_of_100_000_operations_is_no_problem():
    Value.tape.clear()
    leaf = value = Value(1.0)
    for _ in range(100_000):
        value = value + 1
    value.backward()
    assert (value.data, leaf.grad) == (100_001.0, 1.0)
    Value.tape.clear()
    del value  # and neither is forgetting it


def test_a_dot_product_is_one_value_with_the_gradients_of_many():
    rng = random.Random(0)
    x, w = [[Value(rng.random()) for _ in range(5)] for _ in range(2)]
    Value.tape.clear()
    microgpt.dot(x, w).backward()
    assert len(Value.tape) == 1
    gradients = [value.grad for value in x + w]
    for value in x + w:
        value.grad = 0.0
    sum(x_i * w_i for x_i, w_i in zip(x, w)).backward()
    assert len(Value.tape) == 1 + 5 + 5
    assert [value.grad for value in x + w] == pytest.approx(gradients, rel=1e-15)


def test_a_value_can_stand_for_a_whole_computation():
    a, b = Value(2.0), Value(3.0)
    Value(8.0, [a, b], [4.0, 2.0]).backward()
    assert (a.grad, b.grad) == (4.0, 2.0)


def test_a_value_shows_its_number_and_its_gradient():
    assert repr(Value(0.5)) == 'Value(data=0.5, grad=0.0)'


# ---- the model ---------------------------------------------------------------


def test_heads_that_cannot_have_equal_parts_are_an_error():
    with pytest.raises(AssertionError, match='equal length'):
        microgpt.new_model(microgpt.Config(n_head=3), 27, random.Random(1))


def test_softmax_survives_large_scores():
    probabilities = microgpt.softmax([Value(x) for x in (1000.0, 999.0, -5000.0)])
    assert sum(p.data for p in probabilities) == pytest.approx(1)
    assert probabilities[2].data == 0.0


def test_no_position_sees_a_later_one():
    run = Run('small')

    def logits(tokens):
        cache = microgpt.new_cache(run.config)
        return [
            microgpt.numbers(microgpt.gpt(run.model, token, position, cache))
            for position, token in enumerate(tokens)
        ]

    one, other = logits([26, 4, 12, 0]), logits([26, 4, 12, 7])
    assert one[:3] == other[:3] and one[3] != other[3]


def test_training_in_two_parts_is_the_same_as_in_one():
    straight, parts = Run('small'), Run('small')
    assert straight.train(10) == parts.train(4) + parts.train(10)
    numbers = [microgpt.numbers(run.adam.params) for run in (straight, parts)]
    assert numbers[0] == numbers[1]


def test_memory_does_not_grow_with_the_number_of_steps():
    run = Run('small')
    lengths = set()
    for _ in range(3):
        run.train(run.adam.step + len(run.docs))
        lengths.add(len(Value.tape))
    assert len(lengths) == 1
