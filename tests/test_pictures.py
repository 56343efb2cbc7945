"""Looking inside: what the pictures show is what the model does, in every terminal."""
import math
import os
import re

import pytest
from conftest import SCRIPT, SMALL, TINY, Run, refused, run
from test_program import in_terminal, losses

import microgpt
from microgpt import Value


def picture(run, text, **options):
    return list(microgpt.picture(run.model, run.config, run.chars, text, **options))


def direct(run, text):
    """Predictions and attention of a one-layer model, computed straight from its matrices."""
    model, config, tokens = microgpt.plain(run.model), run.config, microgpt.encode(text, run.chars)
    matrix = {name.split('.')[-1]: rows for name, rows in model.items()}
    xs, rows = [], [[] for _ in range(config.n_head)]
    for position, token in enumerate(tokens[:config.block_size + 1][:-1]):
        x = [a + b for a, b in zip(matrix['wte'][token], matrix['wpe'][position])]
        for _ in range(2):                             # normed as the notepad, and as what is read
            x = [x_i / math.sqrt(sum(x_j * x_j for x_j in x) / len(x) + 1e-5) for x_i in x]
        xs.append(x)
        size = config.n_embd // config.n_head
        for h in range(config.n_head):
            part = range(h * size, (h + 1) * size)
            scores = [sum(sum(w * v for w, v in zip(matrix['attn_wq'][j], x)) *
                          sum(w * v for w, v in zip(matrix['attn_wk'][j], earlier)) for j in part)
                      / math.sqrt(size) for earlier in xs]
            exps = [math.exp(score) for score in scores]
            rows[h].append([e / sum(exps) for e in exps])
    return rows


def heads(lines, n):
    """The shaded cells of the heads of a picture, each a list of n rows, as indices of shades."""
    start = next(i for i, line in enumerate(lines) if line.startswith('attention'))
    shades, found = '·░▒▓█', {}
    for i, line in enumerate(lines[start + 1:], start + 1):
        titles = [(match.start(), match[0]) for match in re.finditer(r'L\d+H\d+', line)]
        for column, title in titles:
            found[title] = [[shades.index(cell) for cell in
                             re.match(r'[·░▒▓█]+', lines[i + 2 + t][column + 2:])[0][::2]]
                            for t in range(n)]
    return found


def test_the_predictions_shown_are_those_of_the_loss(tmp_path):
    data, log = tmp_path / 'emma', tmp_path / 'log'
    data.write_text('emma\n')
    result = run('--data', data, '--steps', 1, '--log', log, '--samples', 0, '--inspect', 'emma',
                 '--learning-rate', 0)
    rows = re.findall(r'^ +(\S) +(\S) +([\d.]+)% +([\d.]+) ', result.stderr, re.M)
    assert ''.join(read for read, *_ in rows) == '¶emma'
    assert ''.join(real for _, real, *_ in rows) == 'emma¶'
    for _, _, p, bits in rows:
        assert 2 ** -float(bits) == pytest.approx(float(p) / 100, rel=0.02)
    total, mean = map(float, re.search(r'([\d.]+) bits, ([\d.]+) per character', result.stderr).groups())
    assert mean * math.log(2) == pytest.approx(losses(log)[0], abs=1e-4)
    assert total == pytest.approx(5 * mean, abs=0.01)


def test_the_likeliest_characters_are_shown_with_their_probabilities():
    run = Run('small')
    model, tokens = microgpt.plain(run.model), microgpt.encode('kwame', run.chars)
    cache = microgpt.new_cache(run.config)
    for i, line in enumerate(picture(run, 'kwame')[2:8]):
        p = microgpt.softmax(microgpt.gpt(model, tokens[i], i, cache))
        best = sorted(range(27), key=lambda token: -p[token])[:3]
        shown = re.findall(r'(\S) +(\d+)%', line)[-3:]
        assert [name for name, _ in shown] == [(run.chars + '¶')[token] for token in best]
        assert [int(percent) for _, percent in shown] == [round(100 * p[token]) for token in best]


def test_the_attention_shown_is_that_of_a_direct_computation():
    run = Run('small')
    list(microgpt.train(microgpt.Adam(run.params), run.gradients_at, 60))      # so that it differs
    expected = direct(run, 'kwame')
    shown = heads(picture(run, 'kwame'), 6)
    assert list(shown) == ['L0H0', 'L0H1', 'L0H2', 'L0H3']
    for h, rows in enumerate(expected):
        assert all(sum(row) == pytest.approx(1) for row in rows)
        assert shown[f'L0H{h}'] == [[round(4 * weight) for weight in row] for row in rows]
    assert len({cell for rows in shown.values() for row in rows for cell in row}) >= 4


@pytest.mark.parametrize('size', [40, 80, 200])
@pytest.mark.parametrize('text', ['', 'Zoë', 'さくら大輔', 'Nguyễn', "O'Connor", '大' * 40])
def test_every_line_fits_the_width_and_columns_stay_aligned(size, text):
    run = Run('unicode')
    lines = picture(run, text, size=size)
    assert all(microgpt.cells(line) <= size for line in lines)
    assert ('cut to 6 of' in lines[0]) == (len(text) > 5)
    table = lines[2:2 + min(len(text) + 1, 6)]
    ends = {microgpt.cells(line[:line.index('%')]) for line in table}
    assert len(ends) == 1


def test_invisible_and_combining_characters_are_made_visible():
    assert microgpt.visible(' ', True) == '␣' and microgpt.visible('\u0301', True) == '◌\u0301'
    assert microgpt.visible('\t', True) == '\\t' and microgpt.visible('é', False) == '\\xe9'


def test_long_texts_are_cut_to_the_width_with_a_word(tmp_path):
    result = run('--data', SMALL, '--steps', 0, '--n-embd', 4, '--block-size', 70, '--samples', 0,
                 '--inspect', 'a' * 60)
    assert 'first 61 of 61' not in result.stderr
    narrow = picture(Run(docs=['ab'], config=microgpt.Config(1, 4, 2, 70)), 'a' * 60, size=40)
    assert any('first 38 of 61' in line for line in narrow)


def test_characters_that_the_model_does_not_know_are_named():
    refused(run(*TINY, '--inspect', 'żółw'), 'vocabulary', 'ó', 'ż')


def test_an_ascii_terminal_gets_ascii():
    result = run(*TINY, '--inspect', 'emma', '--chart',
                 env={**os.environ, 'PYTHONIOENCODING': 'ascii:strict'})
    assert result.returncode == 0 and result.stderr.isascii() and '@' in result.stderr


def test_colour_is_for_terminals_and_never_where_no_color_is_set():
    shown = in_terminal(*TINY, '--inspect', 'emma', '--samples', 0)
    assert '\x1b[1m' in in_terminal('--data', SMALL, '--steps', 30, '--inspect', 'amara', '--samples', 0)
    assert '\x1b[1m' not in in_terminal('--data', SMALL, '--steps', 30, '--inspect', 'amara',
                                        '--samples', 0, NO_COLOR='1')
    assert '\x1b' not in run(*TINY, '--inspect', 'emma').stderr
    assert 'attention' in shown


def test_the_curve_has_the_losses_and_the_held_out_level():
    curve = [3 - i / 100 for i in range(200)]
    lines = list(microgpt.chart(curve, 1, 1000, 2.0, size=61))
    assert len(lines) == 13 and all(len(line) <= 61 for line in lines)
    labels = [float(line.split()[0]) for line in lines[:10]]
    assert labels == sorted(labels, reverse=True) and labels[0] == pytest.approx(3, abs=0.01)
    step = (labels[0] - labels[9]) / 9
    columns = ['' if len(line) < 11 else line[10:] for line in lines[:10]]
    for x in range(50):                                # a dot in each column, where the loss is
        rows = [row for row in range(10) if x < len(columns[row]) and columns[row][x] == '●']
        assert len(rows) == 1
        assert labels[rows[0]] == pytest.approx(curve[x * 4] + 0.05, abs=step / 2 + 0.06)
    level = [row for row in range(10) if '─' in columns[row]]
    assert len(level) == 1 and labels[level[0]] == pytest.approx(2.0, abs=step / 2)
    assert lines[11].split() == ['1', '1000'] and 'held-out' in lines[12]


def test_the_curve_is_drawn_on_a_terminal_or_on_demand_from_ten_steps_on():
    assert '● training loss' in in_terminal(*TINY, '--samples', 0)
    assert '●' not in run(*TINY, '--samples', 0).stderr
    assert '● training loss' in run(*TINY, '--samples', 0, '--chart').stderr
    assert '●' not in run(*TINY, '--steps', 9, '--samples', 0, '--chart').stderr


def test_a_graph_as_dot_has_every_value_once_and_every_use_as_an_arrow():
    a, b = Value(2.0), Value(-3.0)
    neuron = (a * b + a).relu()
    neuron.backward()
    lines = microgpt.graphviz(neuron).splitlines()
    assert lines[0] == 'digraph {' and lines[-1] == '}'
    nodes = dict(re.findall(r'^  (\d+) \[(label=.*)\];$', '\n'.join(lines), re.M))
    arrows = re.findall(r'^  (\d+) -> (\d+);$', '\n'.join(lines), re.M)
    label = {key: re.search(r'"(.*)"', text)[1].replace('\\n', ' ') for key, text in nodes.items()}
    assert sorted(label.values()) == ['* data -6 grad 0', '+ data -4 grad 0', 'leaf data -3 grad 0',
                                      'leaf data 2 grad 0', 'relu data 0 grad 1']
    assert sorted((label[x].split()[0], label[y].split()[0]) for x, y in arrows) == [
        ('*', '+'), ('+', 'relu'), ('leaf', '*'), ('leaf', '*'), ('leaf', '+')]
    assert all(('box' in text) == label[key].startswith('leaf') for key, text in nodes.items())
    assert microgpt.graphviz(a).count('label') == 1


def test_a_graph_too_large_to_draw_is_refused():
    value = Value(1.0)
    for _ in range(1500):
        value = value + 1
    with pytest.raises(ValueError, match='3001 nodes are too many'):
        microgpt.graphviz(value)


def test_the_readme_shows_what_the_program_prints():
    readme = SCRIPT.with_name('README.md').read_text('utf-8')
    x, w, bias = [Value(1.0), Value(2.0)], [Value(0.5), Value(-0.25)], Value(0.1)
    neuron = (microgpt.linear(x, [w])[0] + bias).relu()
    neuron.backward()
    assert microgpt.graphviz(neuron) in readme
