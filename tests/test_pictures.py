"""Pictures: what they show is what the model does, on every terminal."""

import math
import os
import re
import struct
import subprocess
import sys
import types

import pytest
from conftest import SCRIPT, SIZES, SMALL, TINY, Run, env, run

import microgpt
from microgpt import Value, numbers


def screen(columns=80, unicode=True, colour=False):
    return types.SimpleNamespace(columns=columns, unicode=unicode, colour=colour)


def picture(run, text, **options):
    return list(microgpt.picture(run, text, screen(**options)))


def in_terminal(*args, columns=80, **variables):
    """What the program writes to stderr, if that is a terminal of so many columns."""
    import fcntl
    import pty
    import termios

    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, columns, 0, 0))
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    settings = {
        'stdout': subprocess.DEVNULL,
        'env': env(**{'TERM': 'xterm', **variables}),
    }
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


def test_the_predictions_shown_are_those_of_the_loss(tmp_path):
    data = tmp_path / 'emma'
    data.write_text('emma\n')
    settings = ['--data', data, '--steps', 1, '--learning-rate', 0, '--samples', 0]
    result = run(*settings, '--inspect', 'emma')
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
    cache = microgpt.new_cache(run.config)
    for i, line in enumerate(picture(run, 'kwame')[2:8]):
        p = numbers(microgpt.softmax(microgpt.gpt(run.model, tokens[i], i, cache)))
        best = sorted(range(27), key=lambda token: -p[token])[:3]
        shown = re.findall(r'(\S) +(\d+)%', line)[-3:]
        assert [name for name, _ in shown] == [
            (run.vocab[:-1] + '¶')[token] for token in best
        ]
        assert [int(percent) for _, percent in shown] == [
            round(100 * p[token]) for token in best
        ]


# ---- attention ---------------------------------------------------------------


def direct_attention(run, text):
    """The attention of a one-layer model, computed directly from its matrices."""
    matrix = {
        name.split('.')[-1]: [numbers(row) for row in rows]
        for name, rows in microgpt.tensors(run.model).items()
    }
    tokens = microgpt.encode(text, run.vocab)
    xs = []
    maps = [[] for _ in range(run.config.n_head)]
    size = run.config.n_embd // run.config.n_head
    for position, token in enumerate(tokens[: run.config.block_size][: len(text) + 1]):
        x = [a + b for a, b in zip(matrix['wte'][token], matrix['wpe'][position])]
        for _ in range(
            2
        ):  # normed as the notepad, and as the copy that attention reads
            x = [
                x_i / math.sqrt(sum(x_j * x_j for x_j in x) / len(x) + 1e-5)
                for x_i in x
            ]
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
    shown = shown_maps(picture(run, 'kwame'), 6)
    assert list(shown) == ['L0H0', 'L0H1', 'L0H2', 'L0H3']
    for head, rows in enumerate(direct_attention(run, 'kwame')):
        assert all(sum(row) == pytest.approx(1) for row in rows)
        assert shown[f'L0H{head}'] == [[round(4 * p) for p in row] for row in rows]
    assert len({cell for rows in shown.values() for row in rows for cell in row}) >= 4


def test_attention_is_recorded_by_layers_and_heads_and_left_as_it_was():
    run = Run('unicode')  # two layers of three heads
    before = microgpt.attention_weights
    tokens, predictions, maps = microgpt.watch(run, 'Zoë')
    assert microgpt.attention_weights is before
    assert len(maps) == 6 and len(predictions) == len(tokens) - 1 == 4
    assert all([len(row) for row in rows] == [1, 2, 3, 4] for rows in maps)


# ---- every width and every alphabet ------------------------------------------


@pytest.mark.parametrize('columns', [40, 80, 200])
@pytest.mark.parametrize(
    'text', ['', 'Zoë', 'さくら大輔', 'Nguyễn', "O'Connor", '大' * 40]
)
def test_every_line_fits_the_screen_and_columns_stay_aligned(columns, text):
    run = Run('unicode')
    lines = picture(run, text, columns=columns)
    assert all(microgpt.cells(line) <= columns for line in lines)
    assert ('cut to 6 of' in lines[0]) == (len(text) > 5)
    table = lines[2 : 2 + min(len(text) + 1, 6)]
    assert len({microgpt.cells(line[: line.index('%')]) for line in table}) == 1


def test_invisible_characters_are_made_visible():
    names = [microgpt.visible(char, screen()) for char in (' ', '\u0301', '\t', '\n')]
    assert names == ['␣', '◌\u0301', '\\t', '¶']
    assert microgpt.visible('é', screen(unicode=False)) == '\\xe9'


def test_an_ascii_terminal_gets_ascii():
    result = run(*TINY, '--inspect', 'emma', env=env(PYTHONIOENCODING='ascii:strict'))
    assert result.returncode == 0 and result.stderr.isascii() and '@' in result.stderr


def test_colour_is_for_terminals_and_never_where_no_color_is_set():
    settings = ['--data', SMALL, '--steps', 30, '--inspect', 'amara', '--samples', 0]
    assert '\x1b[1m' in in_terminal(*settings)
    assert '\x1b[1m' not in in_terminal(*settings, NO_COLOR='1')
    assert '\x1b' not in run(*settings).stderr


def test_a_dumb_terminal_gets_no_escape_sequences():
    settings = ['--data', SMALL, '--steps', 30, '--inspect', 'amara', '--samples', 0]
    shown = in_terminal(*settings, TERM='dumb')
    assert '\x1b' not in shown and 'step 30 / 30' in shown


# ---- progress and chart ------------------------------------------------------


@pytest.mark.parametrize('columns', [40, 80])
def test_on_a_terminal_progress_is_one_line_that_fits(columns):
    shown = in_terminal(*TINY, '--samples', 0, columns=columns)
    progress = shown.split('\n')[3]
    assert progress.startswith('\r\033[K') and '#' in progress and '12 / 12' in progress
    assert all(len(part) < columns for part in progress.split('\r\033[K'))


def test_the_progress_on_a_terminal_ends_with_a_name_that_changes_nothing_else(
    tmp_path,
):
    log, other = tmp_path / 'log', tmp_path / 'other'
    settings = ['--data', SMALL, *SIZES, '--steps', 300, '--samples', 0]
    shown = in_terminal(*settings, '--log', log, '--save', tmp_path / 'a')
    lines = re.findall(r'\r\033\[K([^\r\n]*)', shown)
    assert re.fullmatch(r'#{10} 300 / 300 \| .* left \| [a-z]+', lines[-1])
    run(*settings, '--log', other, '--save', tmp_path / 'b')
    assert log.read_text() == other.read_text()
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def test_the_chart_has_the_losses_and_the_held_out_level():
    losses = [3 - i / 100 for i in range(200)]
    lines = list(microgpt.loss_chart(losses, 1, 1000, 2.0, screen(columns=61)))
    assert len(lines) == 13 and all(len(line) <= 61 for line in lines)
    labels = [float(line.split()[0]) for line in lines[:10]]
    assert labels == sorted(labels, reverse=True) and labels[0] == pytest.approx(
        3, abs=0.01
    )
    step = (labels[0] - labels[9]) / 9
    rows = [line[10:].ljust(50) for line in lines[:10]]
    for x in range(50):  # a dot in each column, where the loss is
        dots = [label for label, row in zip(labels, rows) if row[x] == '●']
        assert dots == [pytest.approx(losses[x * 4] + 0.05, abs=step / 2 + 0.06)]
    level = [label for label, row in zip(labels, rows) if '─' in row]
    assert level == [pytest.approx(2.0, abs=step / 2)]
    assert lines[11].split() == ['1', '1000'] and 'held-out' in lines[12]


def test_the_chart_is_drawn_on_a_terminal_from_ten_steps_on():
    assert '● training loss' in in_terminal(*TINY, '--samples', 0)
    assert '●' not in run(*TINY, '--samples', 0).stderr
    assert '●' not in in_terminal(*TINY[:-1], 9, '--samples', 0)


# ---- graphs ------------------------------------------------------------------


def test_a_graph_has_every_value_once_and_every_use_as_an_arrow_with_its_slope():
    a, b = Value(2.0), Value(3.0)
    c = a * b
    loss = c + a
    loss.backward()
    lines = microgpt.graphviz(loss).splitlines()
    assert lines[0] == 'digraph {' and lines[-1] == '}'
    nodes = {
        number: (label.replace('\\n', ' '), 'box' in rest)
        for number, label, rest in re.findall(
            r'(?m)^  (\d+) \[label="(.*?)"(.*)\];$', '\n'.join(lines)
        )
    }
    assert sorted(nodes.values()) == [
        ('data 2 grad 4', True), ('data 3 grad 2', True),
        ('data 6 grad 1', False), ('data 8 grad 1', False),
    ]  # fmt: skip
    arrows = re.findall(r'(?m)^  (\d+) -> (\d+) \[label="(.*)"\];$', '\n'.join(lines))
    ends = [(nodes[x][0][5], nodes[y][0][5], slope) for x, y, slope in arrows]
    assert sorted(''.join(end) for end in ends) == ['263', '281', '362', '681']


def test_a_graph_too_large_to_draw_is_refused():
    value = Value(1.0)
    for _ in range(600):
        value = value + 1
    with pytest.raises(ValueError, match='more than 500 Values'):
        microgpt.graphviz(value)
