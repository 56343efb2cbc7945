"""The command line: what it prints where, what it refuses, training and sampling under control."""
import collections
import csv
import fcntl
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import termios
import types
import urllib.request

import pytest
from conftest import SCRIPT, SMALL, TESTS, TINY, Run, refused, run, start

import microgpt


def losses(log):
    """The losses in a --log file."""
    return [float(row['loss']) for row in csv.DictReader(log.read_text().splitlines())]


def in_terminal(*args, columns=80, **environment):
    """What the program writes to stderr if that is a terminal of this width; stdout goes to a pipe."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, columns, 0, 0))
    process = subprocess.Popen([sys.executable, str(SCRIPT), *map(str, args)], stderr=child,
                               stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    os.close(child)
    written = b''
    while True:
        try:
            written += os.read(parent, 4096)
        except OSError:                                # Linux's way to say that the other end is closed
            break
    os.close(parent)
    assert process.wait() == 0
    return written.decode('utf-8').replace('\r\n', '\n')


# ---- output ------------------------------------------------------------------------------------

def test_stdout_holds_names_one_a_line_and_nothing_else():
    result = run(*TINY, '--samples', 7, '--temperature', 1)
    assert result.stdout.count('\n') == 7
    assert set(result.stdout) <= set('abcdefghijklmnopqrstuvwxyz\n')


def test_stderr_tells_the_sizes_the_progress_and_the_judgement():
    result = run('--data', SMALL, '--steps', 101, '--n-embd', 4, '--seed', 3)
    lines = result.stderr.splitlines()
    assert lines[:3] == ['num docs: 30', 'vocab size: 27', 'num params: 472']
    steps = [line.split('|')[0] for line in lines if line.startswith('step')]
    assert steps == ['step   1 / 101 ', 'step 100 / 101 ', 'step 101 / 101 ']
    assert all(re.search(r'\| loss \d\.\d{4} \| mean \d\.\d{4} \| .* left$', line) for line in lines[3:6])
    assert re.match(r'held-out loss \d\.\d{4} nats per token \(3 documents\), training loss', lines[6])
    known = set(microgpt.load_docs(SMALL))
    names = result.stdout.splitlines()
    new = sum(name not in known for name in names)
    assert lines[7] == f'{new} of {len(names)} names are new (not in the data)'


@pytest.mark.parametrize('columns', [40, 80])
def test_on_a_terminal_progress_is_one_line_that_fits(columns):
    shown = in_terminal(*TINY, '--samples', 0, columns=columns)
    progress = shown.split('\n')[3]
    assert progress.startswith('\r\033[K') and '#' in progress and '12 / 12' in progress
    assert all(len(part) < columns for part in progress.split('\r\033[K'))


def test_the_log_has_every_step_in_full_precision(tmp_path):
    log = tmp_path / 'log.csv'
    run('--data', SMALL, '--steps', 100, '--val-fraction', 0, '--samples', 0, '--log', log)
    assert losses(log) == pytest.approx(Run('small').reference['losses'], rel=1e-9)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert list(rows[0]) == ['step', 'loss', 'learning_rate']
    assert [int(row['step']) for row in rows] == list(range(1, 101))
    assert float(rows[25]['learning_rate']) == 0.01 * (1 - 25 / 100)


def test_held_out_loss_is_the_mean_over_the_tokens_of_the_last_documents():
    result = run(*TINY, '--steps', 0, '--val-fraction', 0.2, '--samples', 0)
    run_ = Run(docs=microgpt.load_docs(SMALL), config=microgpt.Config(1, 4, 2, 6))
    tests = [microgpt.encode(doc, run_.chars) for doc in run_.docs[-6:]]
    all_losses = [loss.data for tokens in tests
                  for loss in microgpt.document_losses(run_.model, run_.config, tokens)]
    expected = sum(all_losses) / len(all_losses)
    assert f'held-out loss {expected:.4f} nats per token (6 documents)' in result.stderr


def test_nothing_is_held_out_of_a_set_that_is_too_small(tmp_path):
    data = tmp_path / 'few.txt'
    data.write_text('ab\nba\nabba\n')
    assert 'held-out' not in run('--data', data, '--steps', 2, '--samples', 0).stderr
    everything = run('--data', data, '--steps', 2, '--samples', 0, '--val-fraction', 1)
    assert '(2 documents)' in everything.stderr        # but one is left to train on


# ---- data --------------------------------------------------------------------------------------

def test_line_ends_bom_and_unicode_make_no_difference(tmp_path):
    text, results = TESTS.joinpath('reference/unicode.txt').read_text('utf-8'), set()
    for data in (text.encode(), text.replace('\n', '\r\n').encode(), b'\xef\xbb\xbf' + text.encode(),
                 text.strip().encode(), ('\n\n' + text).encode()):
        (tmp_path / 'data.txt').write_bytes(data)
        results.add(run('--data', tmp_path / 'data.txt', '--steps', 2, '--temperature', 2,
                        '--n-embd', 4).stdout)
    assert len(results) == 1 and not results.pop().isascii()


def test_names_can_be_printed_in_any_encoding():
    result = run('--data', TESTS / 'reference/unicode.txt', '--steps', 0, '--temperature', 2,
                 env={**os.environ, 'PYTHONIOENCODING': 'ascii'})
    assert result.returncode == 0 and '\\u' in result.stdout


def test_input_txt_is_found_here_then_beside_the_script(tmp_path):
    tiny = ['--steps', 0, '--samples', 0, '--n-embd', 4]
    assert 'num docs: 6320' in run(*tiny, cwd=tmp_path).stderr
    (tmp_path / 'input.txt').write_text('a\nb\n')
    assert 'num docs: 2' in run(*tiny, cwd=tmp_path).stderr


def test_without_input_txt_the_public_list_is_downloaded_whole_or_not_at_all(
        tmp_path, monkeypatch, capsys):
    script = tmp_path / 'microgpt.py'
    script.write_text(SCRIPT.read_text('utf-8'), encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(microgpt, '__file__', str(script))
    monkeypatch.setattr(microgpt, 'NAMES_URL', (tmp_path / 'served.txt').as_uri())
    assert microgpt.main(['--steps', '0', '--samples', '0']) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith('microgpt: no input.txt, and no download') and '--data' in last

    assert not (tmp_path / 'input.txt').exists()
    (tmp_path / 'served.txt').write_text('emma\nolivia\n')
    assert microgpt.main(['--steps', '0', '--samples', '0']) == 0
    assert (tmp_path / 'input.txt').read_text() == 'emma\nolivia\n'


def test_input_txt_is_a_clean_list_of_names():
    text = SCRIPT.with_name('input.txt').read_text('ascii')
    names = text.splitlines()
    assert 4000 <= len(names) and text.endswith('\n')
    assert names == sorted(set(names))
    assert all(re.fullmatch('[a-z]{2,15}', name) for name in names)
    assert set(''.join(names)) == set('abcdefghijklmnopqrstuvwxyz')


# ---- bad input ---------------------------------------------------------------------------------

def test_unusable_data_is_refused_in_one_line(tmp_path):
    contents = {'empty': b'', 'blank': b'\n \n\t\n', 'latin': b'Zo\xeb\n', 'binary': b'ab\0cd\n',
                'utf16': 'emma'.encode('utf-16')}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(run('--data', tmp_path / name), name)
    refused(run('--data', tmp_path / 'missing'), 'missing', 'No such file')
    refused(run('--data', tmp_path), 'directory')


@pytest.mark.parametrize('args', [
    '--n-layer 0', '--n-embd 0', '--n-embd -16', '--n-head 0', '--block-size 0', '--n-embd 10',
    '--steps -1', '--samples -1', '--temperature -0.5', '--temperature nan', '--temperature inf',
    '--learning-rate nan', '--learning-rate inf', '--learning-rate x', '--steps 1.5', '--seed x',
    '--batch-size 0', '--val-fraction 1.1', '--top-p -0.1', '--top-k -1', '--grad-clip nan',
    '--decay wavy', '--steps 5 --epochs 1', '--no-such-option', '--workers -1', '--prompt Q',
    '--steps 10000000000000', '--prompt abcdefghijklmnopq', '--save same --log same', '--inspect é', '--save .', '--log no/such/folder/log',
    '--save no/such/folder/model', '--load missing'])
def test_a_bad_option_is_refused_in_one_line(args, tmp_path):
    refused(run('--data', SMALL, *args.split(), cwd=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    save = tmp_path / 'model'
    refused(run(*TINY, '--learning-rate', '1e200', '--save', save), 'step ', 'the loss is nan', status=1)
    assert not save.exists()


def test_files_that_are_no_output_of_ours_are_left_alone(tmp_path):
    data, notes, fifo = (tmp_path / name for name in ('data', 'notes', 'fifo'))
    data.write_text('ab\nba\n')
    notes.write_text('my notes\n')
    os.mkfifo(fifo)
    refused(run('--data', data, '--log', notes), 'notes', 'not a log')
    for option in ('--log', '--save'):
        refused(run('--data', data, option, data), 'the same file twice')
        refused(run('--data', data, option, fifo), 'fifo', 'cannot be written')
    assert (data.read_text(), notes.read_text()) == ('ab\nba\n', 'my notes\n')


def test_a_model_that_its_last_step_ruins_is_told_and_not_saved(checkpoint):
    before = checkpoint.read_bytes()
    result = run('--load', checkpoint, '--steps', 13, '--learning-rate', '1e32', '--save', checkpoint)
    refused(result, 'step 13', 'ruined', status=1)
    assert checkpoint.read_bytes() == before


def test_training_goes_on_when_nobody_reads_stderr(tmp_path):
    process = start(*TINY, '--save', tmp_path / 'model', '--samples', 3)
    process.stderr.close()
    assert process.stdout.read().count('\n') == 3 and process.wait() == 0
    assert (tmp_path / 'model').exists()


def test_a_width_beyond_reason_is_none():
    result = run(*TINY, '--inspect', 'emma', '--samples', 0, env={**os.environ, 'COLUMNS': '9' * 18})
    assert result.returncode == 0 and max(map(len, result.stderr.splitlines())) <= 1000


def test_ctrl_c_while_sampling_ends_with_a_line():
    process = start(*TINY, '--samples', 10 ** 6)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and stderr.splitlines()[-1] == 'microgpt: stopped by Ctrl-C'


def test_a_closed_pipe_is_quiet_and_a_closed_or_full_stdout_is_told():
    process = start(*TINY, '--samples', 10 ** 6)
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(timeout=20) == 0
    assert not re.search('Error|Exception|microgpt:', stderr)
    refused(run(*TINY, preexec_fn=lambda: os.close(1)), 'standard output is closed')
    if os.path.exists('/dev/full'):
        with open('/dev/full', 'w') as full:
            result = subprocess.run([sys.executable, str(SCRIPT), *TINY], stdout=full,
                                    stderr=subprocess.PIPE, encoding='utf-8')
        assert result.returncode == 2 and result.stderr.endswith('No space left on device\n')


# ---- notebooks, import, help -------------------------------------------------------------------

@pytest.mark.parametrize('by_cells', [False, True])
def test_pasted_into_a_notebook_it_trains_and_samples(by_cells, tmp_path):
    (tmp_path / 'input.txt').write_text('ab\nba\nb\n')
    kernel = (
        'import re, sys\n'
        'source = open(sys.argv[1], encoding="utf-8").read()\n'
        'sys.argv = ["/usr/lib/ipykernel_launcher.py", "-f", "/run/kernel-1.json"]\n'
        'cells = re.split(r"(?m)^(?=# %%)", source) if ' + str(by_cells) + ' else [source]\n'
        'namespace = {"__name__": "__main__"}\n'
        'for cell in cells: exec(compile(cell, "<cell>", "exec"), namespace)\n'
        'assert namespace["Value"](1.0).data == 1.0\n')
    result = subprocess.run([sys.executable, '-c', kernel, str(SCRIPT)], cwd=tmp_path,
                            capture_output=True, encoding='utf-8')
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 20 and 'step 1000 / 1000' in result.stderr


def test_importing_has_no_effect():
    check = ('import sys, random; before = random.getstate(); sys.path.insert(0, sys.argv[1]); '
             'import microgpt; assert random.getstate() == before')
    result = subprocess.run([sys.executable, '-c', check, str(SCRIPT.parent)], capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b'', b'')


def test_help_shows_every_option_on_one_screen_and_a_half():
    result = run('--help', env={**os.environ, 'COLUMNS': '80'})
    for name in microgpt.OPTIONS:
        assert microgpt.flag(name) in result.stdout
    assert 'example' in result.stdout and len(result.stdout.splitlines()) <= 54


def test_the_table_in_the_readme_is_that_of_the_options():
    readme = SCRIPT.with_name('README.md').read_text('utf-8')
    rows = re.findall(r'^\| `(--[a-z-]+)` \| (.*?) \| (.*?) \|$', readme, re.M)
    assert rows == [(microgpt.flag(name), str(default).replace('None', '').replace('False', ''), help)
                    for name, (_, default, _, help) in microgpt.OPTIONS.items()]


# ---- training under control --------------------------------------------------------------------

def test_a_batch_gives_the_mean_loss_and_the_mean_gradient():
    one, two = ([1.0, [1.0, 2.0]], [2.0, [3.0, -2.0]])
    assert microgpt.mean([one, two]) == (1.5, [2.0, 0.0])


def test_a_batch_takes_the_documents_in_their_order(tmp_path):
    log = tmp_path / 'log'
    run('--data', SMALL, '--val-fraction', 0, '--steps', 1, '--batch-size', 35, '--log', log,
        '--samples', 0)
    all_docs = Run('small')
    first = [all_docs.gradients_at(step)[0] for step in range(35)]     # the 31st is the first again
    assert losses(log) == pytest.approx([sum(first) / 35], rel=1e-12)


def test_epochs_are_rounds_through_the_training_documents():
    result = run(*TINY[:-2], '--epochs', 2, '--batch-size', 4, '--samples', 0)
    assert 'step 14 / 14' in result.stderr             # 27 of 30 documents twice, 4 a step


def test_decays_start_full_and_end_at_zero_or_stay():
    at = {name: [decay(progress) for progress in (0, 0.25, 0.5, 1)]
          for name, decay in microgpt.DECAYS.items()}
    assert at['linear'] == [1, 0.75, 0.5, 0] and at['constant'] == [1, 1, 1, 1]
    assert at['cosine'] == pytest.approx([1, 0.8535533905932737, 0.5, 0])


def test_clipping_bounds_the_norm_of_the_gradient_and_keeps_its_direction(tmp_path):
    free, clipped, loose = (tmp_path / name for name in ('free', 'clipped', 'loose'))
    for path, clip in ((free, 0), (clipped, 0.01), (loose, 1e6)):
        run(*TINY, '--steps', 1, '--save', path, '--grad-clip', clip, '--samples', 0)
    ms = [microgpt.load_checkpoint(path)[4 - 1].m for path in (free, clipped, loose)]
    assert ms[0] == ms[2]
    norm = sum(m * m for m in ms[0]) ** 0.5            # of 0.15 times the gradient
    assert ms[1] == pytest.approx([m * 0.15 * 0.01 / norm for m in ms[0]], rel=1e-9)


# ---- sampling under control --------------------------------------------------------------------

LOGITS = [0.3, 2.0, -1.0, 1.2, 0.9]


def chosen(n, **options):
    """How often each token is chosen in n draws from LOGITS."""
    s = types.SimpleNamespace(**{'temperature': 0.7, 'top_k': 0, 'top_p': 1.0, **options})
    rng = random.Random(5)
    return collections.Counter(microgpt.choose(list(LOGITS), s, rng) for _ in range(n))


@pytest.mark.parametrize('options, kept', [
    ({}, {0, 1, 2, 3, 4}), ({'top_k': 3}, {1, 3, 4}), ({'top_p': 0.85}, {1, 3, 4}),
    ({'top_p': 0.5}, {1}), ({'top_k': 2, 'top_p': 0.99}, {1, 3}), ({'top_k': 99}, {0, 1, 2, 3, 4})])
def test_draws_fit_the_truncated_distribution(options, kept):
    weights = {i: 2.718281828 ** (LOGITS[i] / 0.7) for i in kept}
    counts = chosen(20_000, **options)
    assert set(counts) == kept
    for i in kept:
        p = weights[i] / sum(weights.values())
        assert abs(counts[i] - 20_000 * p) <= 4 * (20_000 * p * (1 - p)) ** 0.5


def test_top_k_1_temperature_0_and_top_p_0_are_greedy():
    for options in ({'top_k': 1}, {'temperature': 0.0}, {'top_p': 0.0}):
        assert chosen(100, **options) == {1: 100}


def test_options_that_allow_everything_change_no_name():
    plain = run(*TINY).stdout
    assert run(*TINY, '--top-p', 1, '--top-k', 27).stdout == plain
    assert run(*TINY, '--temperature', 0, '--unique', '--samples', 1).stdout != plain


def test_every_name_begins_with_the_prompt():
    names = run(*TINY, '--prompt', 'kw', '--temperature', 2).stdout.splitlines()
    assert len(names) == 20 and len(set(names)) > 5
    assert all(name.startswith('kw') and len(name) <= 6 for name in names)
    assert run(*TINY, '--prompt', 'kwamea', '--samples', 1).stdout == 'kwamea\n'


def test_filters_hold_for_every_name_and_draw_again():
    names = run('--data', TESTS / 'reference/unicode.txt', '--steps', 0, '--temperature', 5,
                '--min-length', 2, '--max-length', 4, '--alphabetic', '--unique').stdout.splitlines()
    assert len(names) == len(set(names)) == 20
    assert all(2 <= len(name) <= 4 and name.isalpha() for name in names)


def test_novel_names_are_not_in_the_data(tmp_path):
    data = tmp_path / 'data'
    data.write_text('a\nb\n')
    settings = ['--data', data, '--steps', 0, '--block-size', 2, '--temperature', 5]
    assert {'a', 'b'} <= set(run(*settings).stdout.split('\n'))
    assert not {'a', 'b'} & set(run(*settings, '--novel').stdout.split('\n'))


def test_where_names_run_out_those_found_are_printed_and_a_line_says_why(tmp_path):
    data = tmp_path / 'data'
    data.write_text('a\n')
    result = run('--data', data, '--steps', 0, '--block-size', 1, '--unique')
    assert sorted(result.stdout.split('\n')) == ['', '', 'a']
    assert re.search(r'18 names are missing: too many were refused, 1998 by --unique', result.stderr)
