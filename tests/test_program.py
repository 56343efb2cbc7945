"""The command line: what it prints and refuses, and training under control."""

import csv
import math
import re
import subprocess
import sys
import threading

import pytest
from conftest import SCRIPT, SIZES, SMALL, TINY, UNICODE, Run, env, refused, run

import microgpt


def losses(log):
    """The losses in a --log file."""
    return [float(row['loss']) for row in csv.DictReader(log.read_text().splitlines())]


# ---- output ------------------------------------------------------------------


def test_stdout_holds_names_one_a_line_and_nothing_else():
    result = run(*TINY, '--samples', 7, '--temperature', 1, '--inspect', 'emma')
    assert result.stdout.count('\n') == 7
    assert set(result.stdout) <= set('abcdefghijklmnopqrstuvwxyz\n')


def test_stderr_tells_the_sizes_the_progress_and_the_judgement():
    result = run('--data', SMALL, '--steps', 101, '--n-embd', 4)
    lines = result.stderr.splitlines()
    assert lines[:3] == ['num docs: 30', 'vocab size: 27', 'num params: 472']
    form = r'step +(\d+) / 101 \| loss \d\.\d{4} \| mean \d\.\d{4} \| .* left'
    assert [re.fullmatch(form, line)[1] for line in lines[3:6]] == ['1', '100', '101']
    judged, _, trained = lines[6].partition(', ')
    form = r'held-out loss \d\.\d{4} nats per token \(3 documents\)'
    assert re.fullmatch(form, judged)
    assert re.fullmatch(r'training loss \d\.\d{4}', trained)


def test_the_log_has_every_step_in_full_precision(tmp_path):
    log = tmp_path / 'log.csv'
    run(
        '--data',
        SMALL,
        '--steps',
        100,
        '--val-fraction',
        0,
        '--samples',
        0,
        '--log',
        log,
    )
    assert losses(log) == pytest.approx(Run('small').reference['losses'], rel=1e-9)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert list(rows[0]) == ['step', 'loss', 'learning_rate']
    assert [int(row['step']) for row in rows] == list(range(1, 101))
    assert float(rows[25]['learning_rate']) == 0.01 * (1 - 25 / 100)
    assert b'\r' not in log.read_bytes()


def test_names_can_be_printed_in_any_encoding():
    settings = ['--data', UNICODE, '--steps', 0, '--temperature', 2]
    result = run(*settings, env=env(PYTHONIOENCODING='ascii'))
    assert result.returncode == 0 and '\\u' in result.stdout


# ---- honest figures ----------------------------------------------------------


def token_losses(run, doc):
    """The loss of every prediction of a document, from Part I's functions."""
    cache = microgpt.new_cache(run.config)
    tokens = microgpt.encode(doc, run.vocab)
    found = []
    for position in range(min(run.config.block_size, len(tokens) - 1)):
        logits = microgpt.gpt(run.model, tokens[position], position, cache)
        found.append(-math.log(microgpt.softmax(logits)[tokens[position + 1]].data))
    return found


def test_held_out_loss_is_the_mean_over_the_predictions_of_the_last_documents():
    result = run(*TINY, '--steps', 0, '--val-fraction', 0.2, '--samples', 0)
    same = Run('small', microgpt.Config(1, 4, 2, 6))
    found = [loss for doc in same.docs[-6:] for loss in token_losses(same, doc)]
    expected = (
        f'held-out loss {sum(found) / len(found):.4f} nats per token (6 documents)'
    )
    assert expected in result.stderr


def test_training_loss_is_the_same_kind_of_mean():
    result = run(
        *TINY,
        '--steps',
        24,
        '--val-fraction',
        0.2,
        '--samples',
        0,
        '--learning-rate',
        0,
    )
    same = Run('small', microgpt.Config(1, 4, 2, 6))
    found = [loss for doc in same.docs[:24] for loss in token_losses(same, doc)]
    assert f'training loss {sum(found) / len(found):.4f}' in result.stderr


def test_documents_that_training_has_seen_are_not_called_held_out(tmp_path):
    data = tmp_path / 'data'
    data.write_text('ab\n' * 50 + 'ba\n')
    result = run('--data', data, '--steps', 1, '--samples', 0, '--val-fraction', 0.5)
    held_out = re.search(r'\((\d+) documents\)', result.stderr)
    assert held_out is None or held_out[1] == '1'


def test_nothing_is_held_out_of_a_set_that_is_too_small(tmp_path):
    data = tmp_path / 'few.txt'
    data.write_text('ab\nba\nabba\n')
    assert 'held-out' not in run('--data', data, '--steps', 2, '--samples', 0).stderr
    everything = run('--data', data, '--steps', 2, '--samples', 0, '--val-fraction', 1)
    assert '(2 documents)' in everything.stderr  # but one is left to train on


# ---- documents ---------------------------------------------------------------


def test_line_ends_and_byte_order_marks_make_no_difference(tmp_path):
    text = UNICODE.read_text('utf-8')
    results = set()
    for data in (
        text.encode(),
        text.replace('\n', '\r\n').encode(),
        b'\xef\xbb\xbf' + text.encode(),
        text.strip().encode(),
        ('\n\n' + text).encode(),
    ):
        (tmp_path / 'data.txt').write_bytes(data)
        settings = ['--data', tmp_path / 'data.txt', '--steps', 2, '--temperature', 2]
        results.add(run(*settings, '--n-embd', 4).stdout)
    assert len(results) == 1 and not results.pop().isascii()


def test_a_letter_and_its_accent_are_one_character_in_either_form(tmp_path):
    sizes = set()
    for form in ('zo\u00eb\nana\n', 'zoe\u0308\nana\n'):
        (tmp_path / 'data').write_text(form, encoding='utf-8')
        result = run('--data', tmp_path / 'data', '--steps', 0, '--samples', 0)
        sizes.add(result.stderr.splitlines()[1])
    assert sizes == {'vocab size: 6'}


def test_a_document_of_a_megabyte_costs_what_its_beginning_costs(tmp_path):
    (tmp_path / 'short').write_text('abcdefgh\n' * 3)
    (tmp_path / 'long').write_text(('abcdefgh' * 125_000 + '\n') * 3)
    settings = ['--n-embd', 4, '--block-size', 8, '--steps', 200, '--samples', 3]
    names = [
        run('--data', tmp_path / name, *settings).stdout for name in ('short', 'long')
    ]
    assert names[0] and len(names[1].splitlines()) == 3


def test_only_as_much_of_a_document_is_encoded_as_the_model_can_read():
    same = Run('small')
    tokens = microgpt.document_tokens('a' * 1_000_000, same)
    assert len(tokens) == same.config.block_size + 2


def test_input_txt_is_found_here_then_beside_the_script(tmp_path):
    tiny = ['--steps', 0, '--samples', 0, '--n-embd', 4]
    count = len(microgpt.load_docs(SCRIPT.with_name('input.txt')))
    assert f'num docs: {count}' in run(*tiny, cwd=tmp_path).stderr
    (tmp_path / 'input.txt').write_text('a\nb\n')
    assert 'num docs: 2' in run(*tiny, cwd=tmp_path).stderr


def test_without_input_txt_the_public_list_is_downloaded_whole_or_not_at_all(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(microgpt, 'HERE', str(tmp_path))
    monkeypatch.setattr(microgpt, 'NAMES_URL', (tmp_path / 'served.txt').as_uri())
    assert microgpt.cli(['--steps', '0', '--samples', '0']) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        last.startswith('microgpt: no input.txt, and no download') and '--data' in last
    )
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'served.txt').write_text('emma\nolivia\n')
    assert microgpt.cli(['--steps', '0', '--samples', '0']) == 0
    assert (tmp_path / 'input.txt').read_text() == 'emma\nolivia\n'


def test_input_txt_is_a_clean_list_of_names():
    text = SCRIPT.with_name('input.txt').read_text('ascii')
    names = text.splitlines()
    assert 6000 <= len(names) <= 8000 and text.endswith('\n')
    assert names == sorted(set(names))
    assert all(re.fullmatch('[a-z]{2,15}', name) for name in names)
    assert set(''.join(names)) == set('abcdefghijklmnopqrstuvwxyz')


# ---- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    'name, content, words',
    [
        ('empty', b'', 'no documents'),
        ('blank', b'\n \n\t\n', 'no documents'),
        ('latin', b'Zo\xeb\n', 'not a text in UTF-8'),
        ('binary', b'ab\0cd\n', 'binary'),
        ('utf16', 'emma'.encode('utf-16'), 'UTF-8'),
    ],
)
def test_unusable_data_is_refused_in_one_line(name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(run('--data', tmp_path / name), name, words)


def test_data_that_is_not_there_is_refused_in_one_line(tmp_path):
    refused(run('--data', tmp_path / 'missing'), 'missing', 'No such file')
    refused(run('--data', tmp_path), 'directory')


@pytest.mark.parametrize(
    'args, words',
    [
        ('--n-layer 0', '--n-layer must be from 1'),
        ('--n-embd -16', '--n-embd must be'),
        ('--n-head 0', '--n-head must be'),
        ('--block-size 0', '--block-size must be'),
        ('--n-embd 10', 'multiple of --n-head'),
        ('--n-embd 9999 --n-head 1 --n-layer 1000', 'too large'),
        ('--steps -1', '--steps must be'),
        ('--steps 1.5', "'1.5' is not a whole number"),
        ('--steps 10000000000000', '--steps must be'),
        ('--seed x', "'x' is not a whole number"),
        ('--temperature -0.5', '--temperature must be from 0'),
        ('--temperature nan', '--temperature must be'),
        ('--temperature inf', '--temperature must be'),
        ('--learning-rate x', "'x' is not a number"),
        ('--learning-rate inf', '--learning-rate must be'),
        ('--batch-size 0', '--batch-size must be'),
        ('--val-fraction 1.1', '--val-fraction must be from 0 to 1'),
        ('--top-p -0.1', '--top-p must be'),
        ('--top-k -1', '--top-k must be'),
        ('--decay wavy', 'wavy'),
        ('--steps 5 --epochs 1', 'not allowed with'),
        ('--no-such-option', 'no-such-option'),
        ('--workers -1', '--workers must be'),
        ('--prompt abcdefghijklmnopq', '--block-size'),
        ('--prompt=--', '--'),
        ('--prompt --', '--'),
        ('--save-every 5', '--save-every needs --save'),
        ('--min-length 5 --max-length 3', '--min-length is above'),
        ('--save=', 'a file name is needed'),
        ('--load=', 'a file name is needed'),
        ('--log=', 'a file name is needed'),
        ('--save same --log same', 'the same file twice'),
        ('--save .', 'not a file'),
        ('--save no/such/folder/model', 'cannot be written'),
        ('--log no/such/folder/log', 'cannot be written'),
        ('--save ' + 'a' * 300, 'name too long'),
        ('--load missing', 'no such file'),
        ('--load .', 'not a file'),
    ],
)
def test_a_bad_option_is_refused_in_one_line_of_english(args, words, tmp_path):
    result = run('--data', SMALL, *args.split(), cwd=tmp_path)
    refused(result, words)
    assert result.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(tmp_path):
    save = tmp_path / 'model'
    result = run(*TINY, '--learning-rate', '1e8', '--save', save, '--steps', 100)
    refused(result, 'step ', '--learning-rate', status=1)
    assert not save.exists()


# ---- import, help, threads ---------------------------------------------------


def test_importing_does_nothing():
    check = (
        'import random, sys; sys.path.insert(0, sys.argv[1]); '
        'before = random.getstate(); import microgpt; '
        'assert random.getstate() == before'
    )
    command = [sys.executable, '-c', check, str(SCRIPT.parent)]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b'', b'')


def test_help_shows_every_option_in_80_columns():
    result = run('--help', env=env(COLUMNS='80'))
    for name in vars(microgpt.option_parser().parse_args([])):
        assert microgpt.flag(name) in result.stdout
    assert 'example' in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_defaults_in_the_help_are_the_defaults():
    for action in microgpt.option_parser()._actions:
        if isinstance(action.default, (int, float)) and action.nargs != 0:
            assert float(re.search(r'\(([^()]*)\)$', action.help)[1]) == action.default
    assert microgpt.option_parser().parse_args([]).decay == 'linear'


def test_off_the_main_thread_it_trains_without_signal_handlers(tmp_path):
    statuses = []
    args = [*TINY, '--save', str(tmp_path / 'model'), '--samples', '0']
    thread = threading.Thread(target=lambda: statuses.append(microgpt.cli(args)))
    thread.start()
    thread.join()
    assert statuses == [0] and (tmp_path / 'model').exists()


# ---- training under control --------------------------------------------------


def test_a_batch_takes_the_documents_in_their_order(tmp_path):
    log = tmp_path / 'log'
    settings = ['--data', SMALL, '--val-fraction', 0, '--steps', 1, '--samples', 0]
    run(*settings, '--batch-size', 35, '--log', log)
    same = Run('small')
    first = [
        same.loss_at(step).data for step in range(35)
    ]  # the 31st is the first again
    assert losses(log) == pytest.approx([sum(first) / 35], rel=1e-12)


def moments(tmp_path, *options):
    """Adam's m after one step with these options."""
    path = tmp_path / 'model'
    run(*TINY, '--steps', 1, '--save', path, '--samples', 0, *options)
    m = microgpt.load_checkpoint(path).adam.m
    path.unlink()
    return m


def test_a_batch_gives_the_mean_of_the_gradients(tmp_path):
    same = Run('small', microgpt.Config(1, 4, 2, 6))
    gradients = []
    for step in range(2):
        tokens = same.tokens(step)
        found = microgpt.document_gradients(
            same.model, same.config, same.adam.params, tokens
        )
        gradients.append(found[1])
    expected = [0.15 * (g + h) / 2 for g, h in zip(*gradients)]
    assert moments(tmp_path, '--batch-size', 2) == pytest.approx(expected, rel=1e-12)


def test_clipping_bounds_the_length_of_the_gradient_and_keeps_its_direction(tmp_path):
    free = moments(tmp_path)
    assert moments(tmp_path, '--grad-clip', 1e6) == free
    length = math.sqrt(sum(m * m for m in free))  # of 0.15 times the gradient
    expected = [m * 0.15 * 0.01 / length for m in free]
    assert moments(tmp_path, '--grad-clip', 0.01) == pytest.approx(expected, rel=1e-9)


def test_epochs_are_rounds_through_the_training_documents():
    result = run(
        '--data', SMALL, *SIZES, '--epochs', 2, '--batch-size', 4, '--samples', 0
    )
    assert 'step 14 / 14' in result.stderr  # 27 of 30 documents twice, 4 a step


def test_the_rate_starts_full_and_falls_to_zero():
    at = {
        name: [decay(progress) for progress in (0, 0.25, 0.5, 1)]
        for name, decay in microgpt.DECAYS.items()
    }
    assert at['linear'] == [1, 0.75, 0.5, 0]
    assert at['cosine'] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])


def test_the_number_of_workers_changes_no_bit(tmp_path):
    settings = [
        '--data',
        SMALL,
        *SIZES,
        '--steps',
        4,
        '--batch-size',
        5,
        '--grad-clip',
        0.5,
    ]
    results = []
    for workers in (1, 2, 3, 9):
        path, log = tmp_path / f'model {workers}', tmp_path / f'log {workers}'
        outputs = ['--workers', workers, '--save', path, '--log', log]
        result = run(*settings, *outputs)
        assert result.returncode == 0, result.stderr
        results.append((result.stdout, path.read_bytes(), log.read_text()))
    assert results[0][0] and all(result == results[0] for result in results)
