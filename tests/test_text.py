"""Part I as a text: its worked examples are right, and it opens as a notebook."""

import ast
import math
import random
import re
import sys
import types

import pytest
from conftest import SCRIPT, part_1

import microgpt
from microgpt import Value, numbers

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
    blocks = re.findall(r'(?s)```text\n(.*?)```', prose())
    found = [block for block in blocks if words in block]
    assert len(found) == 1, words
    return found[0].splitlines()


def row(line):
    """The numbers of a line, as they are written."""
    return re.findall(r'(?<![\w.])-?\d+(?:\.\d+)?', line)


def assert_shown(written, found):
    """Assert that numbers are written as these are, rounded."""
    assert len(written) == len(found)
    for text, number in zip(written, found):
        digits = len(text.partition('.')[2])
        assert float(text) == pytest.approx(number, abs=0.501 * 10**-digits), written


def values(written):
    return [Value(float(text)) for text in written]


def test_the_example_of_tokens_is_right():
    vocab = microgpt.vocabulary(['abcdefghijklmnopqrstuvwxyz'])
    lines = example('tokens    BOS')
    assert_shown(row(lines[0]), microgpt.encode('emma', vocab))
    assert [line.split()[-1] for line in lines[3:]] == ['e', 'm', 'm', 'a', 'BOS']


def test_the_example_of_the_chain_rule_is_right():
    lines = example('going back through')
    a, b = Value(2.0), Value(3.0)
    c = a * b
    loss = c + a
    loss.backward()
    assert lines[0].endswith(f'c = a * b = {c.data:g}, loss = c + a = {loss.data:g}')
    assert_shown(row(lines[-1]), [c.grad, a.grad, b.grad])
    assert re.findall(r'= (\d)', lines[3] + lines[4][11:]) == ['1', '1', '3', '2']


def softmaxed(x):
    return numbers(microgpt.softmax(x))


TABLES = {  # words of a table, how many numbers are given, and what follows from them
    'exp of scores': (3, lambda x: numbers(x_i.exp() for x_i in x) + softmaxed(x)),
    'softmax(rmsnorm(x))': (3, lambda x: softmaxed(x) + softmaxed(microgpt.rmsnorm(x))),
    'temperature    probabilities': (4, lambda x: softmaxed([s / x[3] for s in x[:3]])),
    'relu(a - b) + relu(b - a)': (
        2,
        lambda x: numbers([x[0] + x[1], (x[0] - x[1]).relu() + (x[1] - x[0]).relu()]),
    ),
}


@pytest.mark.parametrize('words', TABLES)
def test_the_tables_of_numbers_are_right(words):
    given, function = TABLES[words]
    rows = [row(line) for line in example(words)[1:]]
    assert len(rows) >= 2
    for written in rows:
        assert_shown(written[given:], function(values(written[:given])))


def test_the_example_of_attention_is_right():
    lines = example('weighted mean of the values')
    query = values(['2', '0', '1', '1'])
    assert 'The query is 2 0 1 1' in ' '.join(prose().split())
    table = [row(line) for line in lines[1:4]]
    keys = [values(written[:4]) for written in table]
    dots = numbers(microgpt.linear(query, keys))
    one_hot = [values(text) for text in ('100', '010', '001')]  # they find the weights
    weights = numbers(microgpt.attention(query, keys, one_hot))
    for written, dot, weight in zip(table, dots, weights):
        assert sum(map(int, written[4:8])) == dot
        assert_shown(written[8:13], [dot, dot, 2, dot / 2, weight])
    rows = [values(written[-4:]) for written in table]
    assert_shown(row(lines[-1]), numbers(microgpt.attention(query, keys, rows)))


def test_the_example_of_scores_that_are_too_large_is_right():
    for written in [row(line) for line in example('growth of the weight of m')[2:]]:
        scores = values(written[:3])
        weights = softmaxed(scores)
        scores[2].data += 0.1
        assert_shown(written[3:], [*weights, softmaxed(scores)[2] - weights[2]])


def test_the_examples_of_longer_sums_and_of_the_loss_are_right():
    sizes, distances = [row(line) for line in example('size of sum')]
    rng = random.Random(1)
    for n, distance in zip(map(int, sizes), map(float, distances)):
        sums = [sum(rng.choice((-1, 1)) for _ in range(n)) for _ in range(1000)]
        rms = (sum(x * x for x in sums) / len(sums)) ** 0.5
        assert distance == n**0.5 == pytest.approx(rms, rel=0.1)
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


def size(x):
    """The root of the mean square of a list of Values."""
    return math.sqrt(sum(number * number for number in numbers(x)) / len(x))


def test_x_and_what_is_added_to_it_have_the_sizes_that_chapter_6_names(monkeypatch):
    added, sizes, add = [], [], microgpt.add

    def recorded(u, v):
        added.append(size(v))
        sizes.append(size(sums := add(u, v)))
        return sums

    monkeypatch.setattr(microgpt, 'add', recorded)
    microgpt.main(SCRIPT.with_name('input.txt'), steps=200, samples=0)
    assert [sizes[0], *added[1:3]] == pytest.approx([0.1] * 3, abs=0.06)  # untrained
    x = sizes[2::3]  # after embeddings, attention and MLP
    means = [sum(x[i : i + 300]) / 300 for i in range(0, len(x) - 300, 300)]
    assert min(means) > 1 and max(means) < 1.6


def test_every_chapter_ends_with_an_expression_and_its_result():
    source, kernel, chapters = part_1(), types.ModuleType('part_1'), []
    lines = source.splitlines()
    for statement in ast.parse(source).body:
        code = compile(ast.Module([statement], []), 'part_1.py', 'exec')
        comment = lines[statement.end_lineno - 1].partition('  # ')[2]
        if not isinstance(statement, ast.Expr) or not comment:
            exec(code, kernel.__dict__)
            continue
        before = '\n'.join(lines[: statement.lineno])
        chapters.append(int(re.findall(r'(?m)^# ## (\d+)\. ', before)[-1]))
        found = repr(eval(ast.unparse(statement), kernel.__dict__))
        assert re.sub(r'[\d.e-]+', '', found) == re.sub(r'[\d.e-]+', '', comment)
        assert_shown(row(comment), [float(number) for number in row(found)])
    assert set(chapters) == set(range(2, 12))
    assert max(map(chapters.count, chapters)) <= 2


def test_the_file_is_a_notebook_whose_prose_is_markdown_in_numbered_chapters():
    for kind, body in cells():
        comments = [line.startswith('#') for line in body.strip().splitlines()]
        assert kind == 'code' or body.startswith('"""') or all(comments)
    chapters = [int(number) for number in re.findall(r'(?m)^## (\d+)\. ', prose())]
    assert chapters == list(range(1, len(chapters) + 1)) and len(chapters) > 13


@pytest.mark.parametrize('kind', ['cells', 'cells of VS Code', 'one cell', 'a script'])
def test_both_parts_run_in_a_notebook_only(kind, tmp_path, monkeypatch, capsys):
    (tmp_path / 'input.txt').write_text('ab\nba\nb\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.argv', ['ipykernel_launcher.py', '-f', 'kernel-1.json'])
    kernel = types.ModuleType('__main__')
    texts = [body for _, body in cells()] if 'cells' in kind else [SOURCE]
    if kind == 'a script':
        texts = [part_1()]  # the rest would take pytest's place
    else:
        kernel.get_ipython = lambda: None
        monkeypatch.setitem(sys.modules, 'ipykernel', types)
    if kind == 'cells of VS Code':
        kernel.__file__ = str(tmp_path / 'notebook.ipynb')
    for text in texts:
        text = text.replace('steps=1000', 'steps=20').replace('int, 1000', 'int, 20')
        exec(compile(text, '<cell>', 'exec'), kernel.__dict__)
    printed, n_runs = capsys.readouterr(), 0 if kind == 'a script' else 1
    assert printed.err == '' and len(kernel.model['wte']) == (3 if n_runs else 27)
    by_both = 'step   20 / 20 |', 'step 20 / 20 |', '● training loss', '\nL0H0 '
    assert [printed.out.count(words) for words in by_both] == [n_runs] * 4
