"""Part I as a text: its worked examples are right, and it opens as a notebook."""

import doctest
import math
import random
import re
import types

import pytest
from conftest import SCRIPT, part_1

import microgpt
from microgpt import Value

SOURCE = SCRIPT.read_text('utf-8')


def cells():
    """The cells of the file: pairs of kind ('markdown' or 'code') and text."""
    found = []
    for part in re.split(r'(?m)^(?=# %%)', SOURCE):
        if part:
            head, _, body = part.partition('\n')
            found.append(('markdown' if head == '# %% [markdown]' else 'code', body))
    return found


def prose():
    """The Markdown of the file, as a notebook shows it."""
    texts = [body for kind, body in cells() if kind == 'markdown']
    return '\n'.join(re.sub(r'(?m)^# ?|^"""$', '', body) for body in texts)


def example(words):
    """The lines of the fenced block that has these words in it."""
    blocks = [
        block
        for block in re.findall(r'(?s)```text\n(.*?)```', prose())
        if words in block
    ]
    assert len(blocks) == 1, words
    return blocks[0].splitlines()


def row(line):
    """The numbers of a line, as they are written."""
    return re.findall(r'(?<![\w.])-?\d+(?:\.\d+)?', line)


def assert_shown(written, values):
    """Assert that numbers are written as these values are, rounded."""
    assert len(written) == len(values)
    for text, value in zip(written, values):
        digits = len(text.partition('.')[2])
        assert float(text) == pytest.approx(value, abs=0.501 * 10**-digits), written


def numbers(values):
    return [value.data for value in values]


def values(written):
    return [Value(float(text)) for text in written]


# ---- worked examples ---------------------------------------------------------


def test_the_examples_in_docstrings_are_right():
    result = doctest.testmod(microgpt)
    assert result.attempted >= 4 and result.failed == 0


def test_the_example_of_tokens_is_right():
    vocab = microgpt.vocabulary(['abcdefghijklmnopqrstuvwxyz'])
    tokens = microgpt.encode('emma', vocab)
    lines = example('tokens    BOS')
    assert_shown(row(lines[0]), tokens)
    assert [line.split()[-1] for line in lines[3:]] == ['e', 'm', 'm', 'a', 'BOS']


def test_the_example_of_the_chain_rule_is_right():
    lines = example('going back through')
    a, b = Value(2.0), Value(3.0)
    c = a * b
    loss = c + a
    loss.backward()
    made, end = f'c = a * b = {c.data:g}', f'loss = c + a = {loss.data:g}'
    assert lines[0] == f'forward: a = 2, b = 3, {made}, {end}'
    assert_shown(row(lines[-1]), [c.grad, a.grad, b.grad])
    assert [eval(product) for product in re.findall(r'\d \* \d', lines[3])] == [1, 1]
    assert [eval(product) for product in re.findall(r'\d \* \d', lines[4])] == [3, 2]


@pytest.mark.parametrize('words', ['exp of scores', 'softmax(rmsnorm(x))'])
def test_the_examples_of_softmax_and_of_the_norm_are_right(words):
    for line in example(words)[1:]:
        written = row(line)
        x = values(written[:3])
        if words == 'exp of scores':
            expected = [
                *numbers(score.exp() for score in x),
                *numbers(microgpt.softmax(x)),
            ]
        else:
            normed = microgpt.softmax(microgpt.rmsnorm(x))
            expected = [*numbers(microgpt.softmax(x)), *numbers(normed)]
        assert_shown(written[3:], expected)


def test_the_example_of_attention_is_right():
    lines = example('weighted mean of the values')
    query = values(['2', '0', '1', '1'])
    assert 'The query is 2 0 1 1' in ' '.join(prose().split())
    table = [row(line) for line in lines[1:4]]
    keys = [values(written[:4]) for written in table]
    dots = numbers(microgpt.linear(query, keys))
    weights = microgpt.attention_weights(query, keys)
    rows = [values(written[-4:]) for written in table]
    for written, dot, weight in zip(table, dots, weights):
        assert sum(map(int, written[4:8])) == dot
        assert_shown(written[8:12], [dot, dot, 2, dot / 2])
        assert_shown(written[12:13], [weight.data])
    mean = microgpt.linear(weights, [list(column) for column in zip(*rows)])
    assert_shown(row(lines[-1]), numbers(mean))


def test_the_example_of_scores_that_are_too_large_is_right():
    small, large = [row(line) for line in example('growth of the weight of m')[2:]]
    assert [10 * float(score) for score in small[:3]] == [
        float(score) for score in large[:3]
    ]
    for written in (small, large):
        scores = values(written[:3])
        weights = numbers(microgpt.softmax(scores))
        scores[2].data += 0.1
        grown = numbers(microgpt.softmax(scores))
        assert_shown(written[3:], [*weights, grown[2] - weights[2]])


def size(x):
    """The root of the mean square of a list of Values."""
    return math.sqrt(sum(number * number for number in numbers(x)) / len(x))


def test_before_training_embeddings_and_notes_have_the_sizes_that_chapter_7_names():
    config = microgpt.Config()
    model = microgpt.new_model(config, 27, random.Random(1))
    layer, cache = model['layers'][0], microgpt.new_cache(config)[0]
    x = microgpt.add(model['wte'][0], model['wpe'][0])
    assert size(x) == pytest.approx(0.1, abs=0.05)
    x = microgpt.rmsnorm(x)
    for note in (microgpt.attention(x, layer, cache), microgpt.mlp(x, layer)):
        assert size(note) == pytest.approx(0.1, abs=0.05)


def test_the_example_of_longer_and_longer_sums_is_right():
    sizes, distances = [row(line) for line in example('size of sum')]
    rng = random.Random(1)
    for n, distance in zip(map(int, sizes), distances):
        sums = [sum(rng.choice((-1, 1)) for _ in range(n)) for _ in range(1000)]
        rms = (sum(x * x for x in sums) / len(sums)) ** 0.5
        assert float(distance) == n**0.5 == pytest.approx(rms, rel=0.1)


def test_the_example_of_the_loss_is_right():
    lines = example('-log(p)')
    p = [eval(text) for text in lines[0].split()[1:]]
    assert_shown(row(lines[1]), [-math.log(x) for x in p])


def test_the_example_of_adam_is_right():
    for line in example('m_hat / sqrt(v_hat)')[1:]:
        if line.endswith(':'):
            parameter = Value(0.0)
            adam = microgpt.Adam([parameter])
            continue
        written = row(line)
        parameter.grad = float(written[0])
        before = parameter.data
        adam.update(1.0)
        m_hat = adam.m[0] / (1 - 0.85**adam.step)
        v_hat = adam.v[0] / (1 - 0.99**adam.step)
        moved = before - parameter.data
        assert_shown(written[1:], [adam.m[0], m_hat, adam.v[0], v_hat, moved])


def test_the_example_of_temperature_is_right():
    for line in example('temperature    probabilities')[1:]:
        written = row(line)
        scores = [score / float(written[3]) for score in values(written[:3])]
        assert_shown(written[4:], numbers(microgpt.softmax(scores)))


def test_main_prints_what_chapter_12_shows_and_the_notepad_keeps_its_size(
    monkeypatch, capsys
):
    sizes = []
    add = microgpt.add

    def recorded(u, v):
        sums = add(u, v)
        sizes.append(size(sums))
        return sums

    monkeypatch.setattr(microgpt, 'add', recorded)
    monkeypatch.chdir(SCRIPT.parent)
    microgpt.main()
    printed = capsys.readouterr().out.splitlines()
    lines = example('step    1 / 1000')
    assert printed[:2] == lines[:2]
    assert printed[10:15] == lines[3:8]
    notepads = sizes[2::3]  # after embeddings, attention and MLP
    means = [
        sum(notepads[i : i + 500]) / 500 for i in range(0, len(notepads) - 500, 500)
    ]
    assert min(means) > 1.05 and max(means) < 1.45


def test_the_sizes_of_this_model_are_right():
    config = microgpt.Config()
    model = microgpt.new_model(config, 27, microgpt.random.Random(1))
    assert f'| parameters | {len(microgpt.parameters(model)):,} |' in prose()
    names = ('layers', '`n_embd`', 'heads per layer', 'positions')
    for name, size in zip(names, config):
        assert f'| {name} | {size} |' in prose()


# ---- the notebook ------------------------------------------------------------


def test_the_file_is_a_notebook_whose_prose_is_markdown():
    kinds = [kind for kind, _ in cells()]
    assert kinds.count('markdown') >= 10 and kinds.count('code') >= 10
    for kind, body in cells():
        lines = body.strip().splitlines()
        if kind == 'code':
            comments = [line.startswith('#') for line in lines]
            assert not any(all(comments[i : i + 6]) for i in range(len(lines) - 5)), (
                body
            )
        elif not body.startswith('"""'):
            assert all(line.startswith('#') for line in lines)


def test_paragraphs_are_short_and_lines_are_narrow():
    for paragraph in re.sub(r'(?s)```text.*?```', '', prose()).split('\n\n'):
        lines = paragraph.strip().splitlines()
        is_list = lines and lines[0].startswith(('|', '-'))
        assert is_list or len(lines) <= 6, paragraph
    for kind, body in cells():
        limit = 80 if kind == 'markdown' else 88
        assert all(len(line) <= limit for line in body.splitlines())


def test_every_chapter_has_its_number():
    numbers = [int(number) for number in re.findall(r'(?m)^## (\d+)\. ', prose())]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 13


@pytest.mark.parametrize('by_cells', [False, True])
def test_pasted_into_a_notebook_it_trains_and_samples(
    by_cells, tmp_path, monkeypatch, capsys
):
    (tmp_path / 'input.txt').write_text('ab\nba\nb\n')
    monkeypatch.chdir(tmp_path)
    kernel = types.ModuleType('__main__')  # without __file__, as a kernel has it
    monkeypatch.setattr('sys.argv', ['ipykernel_launcher.py', '-f', 'kernel-1.json'])
    for text in [body for _, body in cells()] if by_cells else [SOURCE]:
        exec(compile(text, '<cell>', 'exec'), kernel.__dict__)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 20 and 'step 1000 / 1000' in printed.err
    assert kernel.Value(1.0).data == 1.0


def test_part_1_alone_is_a_notebook_that_runs_from_top_to_bottom():
    kernel = types.ModuleType('__main__')
    exec(part_1(), kernel.__dict__)
    assert callable(kernel.main)
