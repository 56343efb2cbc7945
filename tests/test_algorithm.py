"""Part I: the figures of the reference, right gradients, and no silent wrong answer."""

import math
import random
import statistics
import types

import pytest
from conftest import SMALL, Run, part_1

import microgpt
from microgpt import Config, Value, numbers

# ---- the reference -----------------------------------------------------------


@pytest.mark.parametrize('name', ['small', 'unicode'])
def test_parameters_gradients_losses_and_names_are_those_of_the_reference(name):
    run = Run(name)
    reference, params = run.reference, run.params
    assert run.docs[:5] == reference['first_docs']
    sizes = [len(run.docs), len(run.vocab), len(params)]
    keys = 'num_docs', 'vocab_size', 'num_params'
    assert sizes == [reference[key] for key in keys]
    for i, number in reference['initial_params'].items():
        assert params[int(i)].data == pytest.approx(number, rel=1e-12)
    run.loss_at(0).backward()
    for i, number in reference['first_step_gradients'].items():
        assert params[int(i)].grad == pytest.approx(number, rel=1e-12)
    norm = math.hypot(*(p.grad for p in params))
    assert norm == pytest.approx(reference['first_step_gradient_norm'], rel=1e-12)
    run = Run(name)
    losses = run.train(run.settings['num_steps'])
    assert losses == pytest.approx(reference['losses'], rel=1e-9)
    made = [run.model, run.vocab, run.settings['temperature'], run.rng]
    names = [microgpt.sample(*made) for _ in reference['samples']]
    assert names == reference['samples']


def test_part_1_alone_trains_writes_and_gives_its_model_back(capsys):
    alone = types.ModuleType('part_1')
    exec(part_1(), alone.__dict__)
    reference = Run('small').reference
    model = alone.main(SMALL, steps=100)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f'step    1 / 100 | mean loss {reference["losses"][0]:.4f}',
        f'step  100 / 100 | mean loss {statistics.fmean(reference["losses"]):.4f}',
        *reference['samples'],
    ]
    same = Run('small')
    same.train(100)
    assert numbers(alone.parameters(model)) == numbers(same.params)
    alone.main(SMALL, steps=5, samples=0)  # a short run shows its losses, too
    assert capsys.readouterr().out.count('mean loss') == 2


def slope(function, arguments, i, h=1e-6):
    """The derivative with respect to the i-th argument, by differences."""
    ends = []
    for step in (h, -h):
        moved = [Value(x + step * (j == i)) for j, x in enumerate(arguments)]
        ends.append(function(*moved).data)
    return (ends[0] - ends[1]) / (2 * h)


OF_VALUES = {'exp': Value.exp, 'log': Value.log, 'relu': Value.relu, **vars(microgpt)}
OF_NUMBERS = {  # the same for numbers, from an independent source
    'exp': math.exp,
    'log': math.log,
    'relu': lambda x: max(x, 0),
    'dot': lambda u, v: sum(map(lambda x, y: x * y, u, v)),
    'total': sum,
    'softmax': lambda x: [math.exp(x_i) / sum(map(math.exp, x)) for x_i in x],
    'rmsnorm': lambda x: [x_i / math.hypot(*x, 0.0044721) * 2**0.5 for x_i in x],
}
EXPRESSIONS = """
a + b | a + 2 | 2 + a | a - b | a - 2 | 2 - a | a * b | a * a | 3 * a | a / b | a / 3
3 / a | a ** 3 | a ** -0.5 | -a | exp(a) | log(a) | relu(a - b) | relu(b - a)
sum([a, b, a]) | dot([a, b, a], [b, b, a]) | dot([a, b], [a, b]) | total([a, b, a])
softmax([a, b])[1] | rmsnorm([a, b])[1]
"""


@pytest.mark.parametrize('text', EXPRESSIONS.strip().replace('\n', ' | ').split(' | '))
def test_every_operation_has_the_value_and_the_slopes_of_its_function(text):
    def function(a, b):
        return eval(text, {**OF_VALUES, 'a': a, 'b': b})

    a, b = Value(1.7), Value(0.6)
    result = function(a, b)
    result.backward()
    expected = eval(text, {**OF_NUMBERS, 'a': 1.7, 'b': 0.6})
    assert result.data == pytest.approx(expected, rel=1e-7)
    assert a.grad == pytest.approx(slope(function, [1.7, 0.6], 0), rel=1e-7, abs=1e-9)
    assert b.grad == pytest.approx(slope(function, [1.7, 0.6], 1), rel=1e-7, abs=1e-9)


def test_the_loss_of_the_model_has_right_gradients_in_every_matrix():
    sizes = Config(n_layer=2, n_embd=6, n_head=2, block_size=5)
    run = Run('small', sizes, ['abcab', 'bcd'])
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
    a.backward()
    assert (a.grad, b.grad) == (16.0 + 7.0 + 1.0, 10.0 + 4.0)


def test_the_tape_has_what_operations_made_and_forgets_it():
    Value.tape.clear()
    a = Value(2.0)
    square = a * a
    assert Value.tape == [square]
    Value.tape.clear()
    result = square * 3 + a  # square is a mere number now
    result.backward()
    assert (result.data, square.grad, a.grad) == (14.0, 3.0, 1.0)
    with pytest.raises(AssertionError, match='its tape was cleared'):
        square.backward()


def test_sampling_between_a_loss_and_its_backward_changes_no_gradient():
    plain, sampling = Run('small'), Run('small')
    plain.loss_at(0).backward()
    loss = sampling.loss_at(0)
    name = microgpt.sample(sampling.model, sampling.vocab, 0.5, sampling.rng)
    loss.backward()
    gradients = [[p.grad for p in run.params] for run in (plain, sampling)]
    assert name and any(gradients[0]) and gradients[0] == gradients[1]


def test_a_chain_of_100_000_operations_is_no_problem():
    Value.tape.clear()
    leaf = value = Value(1.0)
    for _ in range(100_000):
        value = value + 1
    value.backward()
    assert (value.data, leaf.grad) == (100_001.0, 1.0)
    Value.tape.clear()
    del value  # and neither is forgetting it


def test_a_dot_product_is_one_value_and_so_is_a_whole_computation():
    x, w = [Value(1.0), Value(2.0)], [Value(3.0), Value(5.0)]
    Value.tape.clear()
    microgpt.dot(x, w).backward()
    assert len(Value.tape) == 1
    Value(8.0, [*x, *w], [1.0] * 4).backward()
    assert [v.grad for v in x + w] == [4.0, 6.0, 2.0, 3.0]


# ---- no silent wrong answer --------------------------------------------------


def model_of(*sizes):
    return microgpt.new_model(Config(*sizes), 3, random.Random(1))


def read(model, *positions, cache=None):
    """The logits after token 0 was read at these positions."""
    cache = microgpt.new_cache(model) if cache is None else cache
    for position in positions:
        logits = microgpt.gpt(model, 0, position, cache)
    return numbers(logits)


one, two, three = ([Value(1.0) for _ in range(n)] for n in (1, 2, 3))
LOUD = {  # what somebody might do, and words of the error that it gives
    'dot(two, three)': '2 meets .* 3',
    'linear(three, [two])': '3 meets .* 2',
    'add(one, two)': '1 meets .* 2',
    'Value(1.0, two, [1.0])': 'every input has one slope',
    'Value(-2.0) ** 0.5': 'domain',
    'read(model_of(1, 16, 3), 0)': '16 numbers do not split into 3',
    'read(model_of(2), 0, 0)': r'at position 0, the cache has \[1, 1\]',
    'read(model_of(2), 1)': r'at position 1, the cache has \[0, 0\]',
    'read(model_of(2), 0, cache=[([], [])])': 'see new_cache',
    "vocabulary(['@0\\n00', '@1\\n11'])": 'line break',
    "encode('é', 'ab\\n')": "'é' is not in the vocabulary",
    "encode('a\\nb', 'ab\\n')": 'is not in the vocabulary',
}


@pytest.mark.parametrize('text', LOUD)
def test_what_would_give_a_wrong_answer_is_an_error(text):
    with pytest.raises((AssertionError, ValueError), match=LOUD[text]):
        eval(text, {**vars(microgpt), **globals()})


def test_parameters_are_found_wherever_they_stand_and_each_only_once():
    model = Run('unicode').model
    before = microgpt.parameters(model)
    tensors = microgpt.tensors(model).values()
    assert before == [value for matrix in tensors for row in matrix for value in row]
    added = [Value(0.0) for _ in range(6)]
    model['layers'][-1]['new'] = [added[:1]]
    model['new'] = [added[1:2], added[2:3]]
    model['more'] = [[added[3:4]], ([added[4:5]], 0.5, 'words', added[5])]
    model['again'] = model['wte']
    assert microgpt.parameters(model) == before + added
