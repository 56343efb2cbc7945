"""Pictures: what they show is what the model does, and they fit 60 columns."""

import math
import os
import re
import struct
import subprocess
import sys
import types

import pytest
from conftest import SCRIPT, SMALL, TINY, Run, env

import microgpt
from microgpt import Value, numbers


def picture(run, text):
    """The lines of a picture of a run of conftest.Run."""
    run.options = types.SimpleNamespace(**run.config._asdict())
    return list(microgpt.picture(run, text))


def in_terminal(*args, **variables):
    """What the program writes to stderr, if that is a terminal."""
    import fcntl
    import pty
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, 80, 0, 0))
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    settings = {'stdout': subprocess.DEVNULL, 'env': env(**variables)}
    with subprocess.Popen(command, stderr=child, **settings) as process:
        os.close(child)
        written = b''
        while True:
            try:
                written += os.read(parent, 4096)
            except OSError:  # Linux says so that the other end is closed
                break
    os.close(parent)
    assert process.returncode == 0
    return written.decode('utf-8').replace('\r\n', '\n')


# ---- the table ---------------------------------------------------------------


def test_the_predictions_shown_are_those_of_the_loss(tmp_path, cli):
    (tmp_path / 'emma').write_text('emma\n')
    settings = ['--steps', 1, '--learning-rate', 0, '--samples', 0, '--inspect', 'emma']
    result = cli('--data', tmp_path / 'emma', *settings)
    rows = re.findall(r'(?m)^ +(\S) +(\S) +([\d.]+)% +([\d.]+) ', result.stderr)
    assert ''.join(read for read, *_ in rows) == '¶emma'
    assert ''.join(real for _, real, *_ in rows) == 'emma¶'
    for _, _, p, bits in rows:
        assert 2 ** -float(bits) == pytest.approx(float(p) / 100, rel=0.02)
    found = re.search(r'([\d.]+) bits, ([\d.]+) per character', result.stderr)
    loss = re.search(r'step 1 / 1 \| loss ([\d.]+)', result.stderr)
    assert float(found[2]) * math.log(2) == pytest.approx(float(loss[1]), abs=1e-4)
    assert float(found[1]) == pytest.approx(5 * float(found[2]), abs=0.01)


def test_the_likeliest_characters_are_shown_with_their_probabilities():
    run = Run('small')
    tokens = microgpt.encode('kwame', run.vocab)
    cache = microgpt.new_cache(run.model)
    for i, line in enumerate(picture(run, 'kwame')[2:8]):
        p = numbers(microgpt.softmax(microgpt.gpt(run.model, tokens[i], i, cache)))
        best = sorted(range(27), key=lambda token: -p[token])[:3]
        shown = re.findall(r'(\S) +(\d+)%', line)[-3:]
        names = run.vocab[:-1] + '¶'
        assert [name for name, _ in shown] == [names[token] for token in best]
        percents = [round(100 * p[token]) for token in best]
        assert [int(percent) for _, percent in shown] == percents


# ---- attention ---------------------------------------------------------------


def direct_attention(run, text):
    """The attention of a one-layer model, computed directly from its matrices."""
    matrix = {
        name.split('.')[-1]: [numbers(row) for row in rows]
        for name, rows in microgpt.tensors(run.model).items()
    }
    xs = []
    maps = [[] for _ in range(run.config.n_head)]
    size = run.config.n_embd // run.config.n_head
    for position, token in enumerate(microgpt.encode(text, run.vocab)[:-1]):
        x = [a + b for a, b in zip(matrix['wte'][token], matrix['wpe'][position])]
        for _ in range(2):  # normed at the beginning, and again for attention
            rms = math.sqrt(sum(x_j * x_j for x_j in x) / len(x) + 1e-5)
            x = [x_i / rms for x_i in x]
        xs.append(x)
        for head, rows in enumerate(maps):
            exps = []
            for earlier in xs:
                score = 0
                for j in range(head * size, (head + 1) * size):
                    query = sum(w * x_i for w, x_i in zip(matrix['attn_wq'][j], x))
                    key = sum(w * x_i for w, x_i in zip(matrix['attn_wk'][j], earlier))
                    score += query * key
                exps.append(math.exp(score / math.sqrt(size)))
            rows.append([e / sum(exps) for e in exps])
    return maps


def shown_maps(lines, n):
    """The heads in the lines of a picture: for each, n rows of shades as numbers."""
    start = next(i for i, line in enumerate(lines) if line.startswith('attention'))
    found = {}
    for i in range(start + 1, len(lines)):
        for title in re.finditer(r'L\d+H\d+', lines[i]):
            rows = [line[title.start() + 2 :] for line in lines[i + 2 : i + 2 + n]]
            shades = [re.match('[·░▒▓█]+', row)[0][::2] for row in rows]
            found[title[0]] = [list(map('·░▒▓█'.index, row)) for row in shades]
    return found


def test_the_attention_shown_is_that_of_a_direct_computation():
    run = Run('small')
    run.train(60)  # so that the heads differ
    original, tape = microgpt.attention, list(Value.tape)
    shown = shown_maps(picture(run, 'kwame'), 6)
    assert microgpt.attention is original and Value.tape == tape  # as they were
    assert list(shown) == ['L0H0', 'L0H1', 'L0H2', 'L0H3']
    for head, rows in enumerate(direct_attention(run, 'kwame')):
        assert all(sum(row) == pytest.approx(1) for row in rows)
        assert shown[f'L0H{head}'] == [[round(4 * p) for p in row] for row in rows]
    assert len({cell for rows in shown.values() for row in rows for cell in row}) >= 4


def test_layers_and_heads_have_a_map_each():
    run = Run('unicode')  # two layers of three heads
    shown = shown_maps(picture(run, 'Zoë'), 4)
    assert list(shown) == ['L0H0', 'L0H1', 'L0H2', 'L1H0', 'L1H1', 'L1H2']
    assert all([len(row) for row in rows] == [1, 2, 3, 4] for rows in shown.values())


# ---- every alphabet ----------------------------------------------------------


TEXTS = ['', 'Zoë', 'さくら大輔', 'Nguyễn', "O'Connor", '大' * 40]


@pytest.mark.parametrize('text', TEXTS)
def test_pictures_fit_60_columns_and_stay_aligned(text):
    lines = picture(Run('unicode'), text)
    assert all(microgpt.cells(line) <= 60 for line in lines)
    assert ('cut to 6 of' in lines[0]) == (len(text) > 5)
    table = lines[2 : 2 + min(len(text) + 1, 6)]
    assert len({microgpt.cells(line[: line.index('%')]) for line in table}) == 1


def test_long_texts_fit_too(cli):
    settings = ['--data', SMALL, '--block-size', 64, '--steps', 0, '--samples', 0]
    shown = cli(*settings, '--inspect', 'ab' * 30).stderr.splitlines()
    assert len(shown) > 120 and all(len(line) <= 60 for line in shown[4:])


def test_invisible_characters_are_made_visible():
    names = [microgpt.visible(char) for char in (' ', '\u0301', '\t', '\n', 'é')]
    assert names == ['␣', '\\u0301', '\\t', '¶', 'é']


# ---- the chart ---------------------------------------------------------------


def test_the_chart_has_the_losses_and_the_held_out_level():
    losses = [3 - i / 50 for i in range(48)]
    run = types.SimpleNamespace(step=960)
    progress = types.SimpleNamespace(curve=losses, first=0, run=run)
    lines = list(microgpt.loss_chart(progress, 2.0))
    assert len(lines) == 13 and all(len(line) <= 60 for line in lines)
    labels = [float(line.split()[0]) for line in lines[:10]]
    assert labels == sorted(labels, reverse=True) and labels[0] == 3 and labels[9] == 2
    rows = [line[10:].ljust(48) for line in lines[:10]]
    for x, loss in enumerate(losses):  # a dot in each column, where the loss is
        dots = [label for label, row in zip(labels, rows) if row[x] == '●']
        assert dots == [pytest.approx(loss, abs=1 / 18 + 1e-4)]
    assert '─' in rows[9] and lines[11].split() == ['1', '960']
    assert 'held-out' in lines[12]


def test_the_chart_is_drawn_on_a_terminal_from_ten_steps_on(cli):
    quiet = ['--samples', 0]
    shown = in_terminal(*TINY, *quiet)
    assert '● training loss' in shown and '\x1b' not in shown
    assert '●' not in in_terminal(*TINY[:-1], 9, *quiet) + cli(*TINY, *quiet).stderr


# ---- graphs ------------------------------------------------------------------


def test_a_graph_has_every_value_once_and_every_use_as_an_arrow_with_its_slope():
    a, b = Value(2.0), Value(3.0)
    loss = a * b + a
    loss.backward()
    graph = microgpt.mermaid(loss, a=a, b=b)
    assert graph.splitlines()[0] == 'flowchart LR'
    nodes = dict(re.findall(r'(?m)^    (\d+)[\[(]+"(.*?)"', graph))
    boxes = re.findall(r'(?m)^    \d+\["(.*?)<br>', graph)
    assert boxes == ['a = 2', 'b = 3']  # what no operation has made
    assert sorted(nodes.values()) == [
        '6<br>gradient 1', '8<br>gradient 1', 'a = 2<br>gradient 4', 'b = 3<br>gradient 2',
    ]  # fmt: skip
    arrows = re.findall(r'(?m)^    (\d+) -- (.*) --> (\d+)$', graph)
    ends = [(nodes[x][:5], slope, nodes[y][0]) for x, slope, y in arrows]
    assert sorted(ends) == [
        ('6<br>', '1', '8'), ('a = 2', '1', '8'), ('a = 2', '3', '6'), ('b = 3', '2', '6'),
    ]  # fmt: skip
    assert graph._repr_markdown_() == f'```mermaid\n{graph}\n```'


def test_the_graph_of_a_dot_product_has_both_of_its_lists():
    x, w = [Value(1.0), Value(2.0)], [Value(3.0), Value(4.0)]
    graph = microgpt.mermaid(microgpt.dot(x, w))
    slopes = re.findall(r'-- (.*) -->', graph)
    assert sorted(slopes) == ['1', '2', '3', '4']


def test_a_graph_too_large_to_draw_is_refused():
    value = Value(1.0)
    for _ in range(600):
        value = value + 1
    with pytest.raises(ValueError, match='more than 500 Values'):
        microgpt.mermaid(value)
