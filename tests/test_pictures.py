"""Pictures: what they show is what the model does, and they fit 60 columns."""

import math
import os
import re
import struct
import subprocess
import sys
import types

import pytest
from conftest import SCRIPT, TINY, Run

import microgpt
from microgpt import Value, numbers


def test_the_table_has_the_predictions_of_the_model_and_their_bits():
    run, all_bits = Run('small'), 0.0
    tokens, names = microgpt.encode('kwame', run.vocab), run.vocab[:-1] + '¶'
    lines, cache = list(microgpt.picture(run, 'kwame')), microgpt.new_cache(run.model)
    for i, line in enumerate(lines[2:8]):
        p = numbers(microgpt.softmax(microgpt.gpt(run.model, tokens[i], i, cache)))
        real = p[tokens[i + 1]]
        all_bits -= math.log2(real)
        begin = f'   {names[tokens[i]]}    {names[tokens[i + 1]]}{real:7.1%}'
        assert line.startswith(f'{begin}{-math.log2(real):6.2f}')
        best = sorted(zip(p, names), reverse=True)[:3]
        shown = [(name, f'{round(100 * x)}') for x, name in best]
        assert re.findall(r'(\S) +(\d+)%', line)[-3:] == shown
    assert lines[8] == f'{all_bits:.2f} bits, {all_bits / 6:.4f} per prediction'


def test_the_attention_shown_is_what_softmax_gives_to_each_head(monkeypatch):
    run, weights, softmax = Run('small'), [], microgpt.softmax
    run.train(60)  # so that the heads differ

    def recorded(scores):
        weights.append(numbers(softmax(scores)))
        return softmax(scores)

    monkeypatch.setattr(microgpt, 'softmax', recorded)
    cache, attention = microgpt.new_cache(run.model), microgpt.attention
    for position, token in enumerate(microgpt.encode('kwam', run.vocab)[:-1]):
        microgpt.gpt(run.model, token, position, cache)
    monkeypatch.undo()
    tape = list(Value.tape)
    lines = list(microgpt.picture(run, 'kwam'))
    assert microgpt.attention is attention and Value.tape == tape  # as they were
    assert lines[-7].split() == ['L0H0', 'L0H1', 'L0H2', 'L0H3']
    for i, line in enumerate(lines[-5:]):  # four heads beside each other
        rows = weights[4 * i : 4 * i + 4]
        shades = [''.join('·░▒▓█'[round(4 * p)] * 2 for p in row) for row in rows]
        assert re.findall('[·░▒▓█]+', line) == shades
    titles = re.findall(r'L\dH\d', '\n'.join(microgpt.picture(Run('unicode'), 'Zoë')))
    assert titles == ['L0H0', 'L0H1', 'L0H2', 'L1H0', 'L1H1', 'L1H2']


@pytest.mark.parametrize('text', ['', 'Zoë', 'さくら大輔', '大' * 40])
def test_pictures_fit_60_columns_and_stay_aligned(text):
    lines = list(microgpt.picture(Run('unicode'), text))
    assert all(microgpt.cells(line) <= 60 for line in lines)
    assert ('cut to 6 of' in lines[0]) == (len(text) > 5)
    table = lines[2 : 2 + min(len(text) + 1, 6)]
    assert len({microgpt.cells(line[: line.index('%')]) for line in table}) == 1
    assert microgpt.cells(lines[-1]) == microgpt.cells(lines[-1 - len(table)])  # maps
    names = [microgpt.visible(char) for char in (' ', '\u0301', '\t', '\n', 'é')]
    assert names == ['␣', '\\u0301', '\\t', '¶', 'é']


def test_the_chart_has_the_losses_and_the_held_out_level():
    losses = [3 - i / 50 for i in range(48)]
    run = types.SimpleNamespace(step=960)
    progress = types.SimpleNamespace(curve=losses, first=0, run=run)
    lines = list(microgpt.loss_chart(progress, 2.04))
    assert all(len(line) <= 60 for line in lines)
    labels = [line.split()[0] for line in lines[:10]]
    assert labels == [f'{tenths / 10:.3f}' for tenths in range(30, 20, -1)]
    rows = [line[10:].ljust(48) for line in lines[:11]]
    for x, loss in enumerate(losses):  # a dot in each column, where the loss is
        dots = [3 - i / 10 for i, row in enumerate(rows) if row[x] == '●']
        assert dots == [pytest.approx(loss, abs=0.05 + 1e-9)]
    assert rows[10] == '─' * 48 and 'held-out' in lines[13]
    assert lines[12].split() == ['1', '960']
    progress.curve = [2.0, 2.35]
    assert [line[:8] for line in microgpt.loss_chart(progress, None)][1] == '   2.300'


def on_terminal(*args, term='xterm'):
    """What the program writes to stderr, if that is a terminal of 60 columns."""
    import fcntl
    import pty
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, 60, 0, 0))
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    options = {'stderr': child, 'stdout': subprocess.DEVNULL}
    with subprocess.Popen(command, env={**os.environ, 'TERM': term}, **options):
        os.close(child)
        written = b''
        try:
            while more := os.read(parent, 4096):
                written += more
        except OSError:  # Linux says so that the other end is closed
            os.close(parent)
    return written.decode('utf-8').replace('\r\n', '\n')


def test_on_a_terminal_a_bar_moves_and_is_gone_and_a_chart_follows(cli):
    shown, piped = on_terminal(*TINY), cli(*TINY).stderr
    bars = re.findall('([█░].*?)\r', shown)
    assert bars and all(len(bar) == 59 for bar in bars)
    lines = shown.split('\n')
    for i, line in enumerate(lines):
        lines[i] = ''
        for text in line.split('\r'):  # each over the one before
            lines[i] = (text + lines[i][len(text) :]).rstrip(' ')
    stays = re.sub(r'(?sm)^ +\d\.\d+ │.*● [^\n]*\n', '', '\n'.join(lines))
    assert stays == re.sub('(?m) +$', '', piped)
    assert '\r' not in piped
    assert on_terminal(*TINY, term='dumb') == piped
    assert '●' not in on_terminal(*TINY[:-1], 9)  # steps


def test_a_graph_has_every_value_once_and_every_use_as_an_arrow_with_its_slope():
    a, b = Value(2.0), Value(3.0)
    loss = a * b + a
    loss.backward()
    graph = microgpt.mermaid(loss, a=a, b=b)
    assert graph.splitlines()[0] == 'flowchart LR'
    nodes = dict(re.findall(r'(?m)^    (\d+[\[(])"(.*?)"', graph))
    assert sorted(f'{label} {place[-1]}' for place, label in nodes.items()) == [
        '6<br>gradient 1 (', '8<br>gradient 1 (',  # what operations have made
        'a = 2<br>gradient 4 [', 'b = 3<br>gradient 2 [',
    ]  # fmt: skip
    names = {place[:-1]: label[:5] for place, label in nodes.items()}
    arrows = re.findall(r'(?m)^    (\d+) -- (.*) --> (\d+)$', graph)
    ends = [f'{names[x]} {slope} {names[y]}' for x, slope, y in arrows]
    expected = '6<br> 1 8<br>', 'a = 2 1 8<br>', 'a = 2 3 6<br>', 'b = 3 2 6<br>'
    assert sorted(ends) == list(expected)
    assert graph._repr_markdown_() == f'```mermaid\n{graph}\n```'
    product = microgpt.dot([Value(1.0), Value(2.0)], [Value(3.0), Value(4.0)])
    slopes = re.findall(r'-- (.*) -->', microgpt.mermaid(product))
    assert sorted(slopes) == ['1', '2', '3', '4']  # those of both lists
    for _ in range(600):
        product = product + 1
    with pytest.raises(ValueError, match='more than 500 Values'):
        microgpt.mermaid(product)
