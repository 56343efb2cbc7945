"""The command line: what it prints and refuses, how it trains, judges and samples."""

import collections
import csv
import math
import re
import subprocess
import sys

import pytest
from conftest import SCRIPT, SIZES, SMALL, TINY, UNICODE, Run, env, refused, run

import microgpt


def losses(log):
    """The losses in a --log file."""
    return [float(row['loss']) for row in csv.DictReader(log.read_text().splitlines())]


# ---- output ------------------------------------------------------------------


def test_stderr_tells_the_sizes_the_progress_with_names_and_the_judgement():
    result = run('--data', SMALL, '--steps', 101, '--n-embd', 4, '--temperature', 1)
    lines = result.stderr.splitlines()
    assert lines[:3] == ['num docs: 30', 'vocab size: 27', 'num params: 472']
    form = r'step +(\d+) / 101 \| loss \d\.\d{4} \| mean \d\.\d{4} \| .* left \| [a-z]*'
    assert [re.fullmatch(form, line)[1] for line in lines[3:6]] == ['1', '100', '101']
    judged, _, trained = lines[6].partition(', ')
    form = r'held-out loss \d\.\d{4} nats per token \(3 documents\)'
    assert re.fullmatch(form, judged)
    assert re.fullmatch(r'training loss \d\.\d{4}', trained)
    assert result.stdout.count('\n') == 20  # names, and nothing else
    assert set(result.stdout) <= set('abcdefghijklmnopqrstuvwxyz\n')


def test_the_log_has_every_step_in_full_precision(tmp_path, cli):
    log = tmp_path / 'log.csv'
    settings = ['--data', SMALL, '--steps', 100, '--val-fraction', 0, '--samples', 0]
    cli(*settings, '--log', log)
    assert losses(log) == pytest.approx(Run('small').reference['losses'], rel=1e-9)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert list(rows[0]) == ['step', 'loss', 'learning_rate']
    assert [int(row['step']) for row in rows] == list(range(1, 101))
    assert float(rows[25]['learning_rate']) == 0.01 * (1 - 25 / 100)
    assert b'\r' not in log.read_bytes()


def test_the_program_prints_the_names_of_the_reference(cli):
    options = '--steps 60 --seed 7 --learning-rate 0.02 --n-layer 2 --n-embd 12'
    options += ' --n-head 3 --block-size 6 --temperature 0.8 --val-fraction 0'
    result = cli(*options.split(), '--data', UNICODE)
    assert result.stdout.splitlines() == Run('unicode').reference['samples']


def test_every_terminal_can_print_the_names():
    settings = ['--data', UNICODE, '--steps', 0, '--temperature', 2, '--inspect', 'Zoë']
    result = run(*settings, env=env(PYTHONIOENCODING='ascii'))
    assert result.returncode == 0 and '\\u' in result.stdout


# ---- honest figures ----------------------------------------------------------


def token_losses(run, doc):
    """The loss of every prediction of a document, from Part I's functions."""
    cache = microgpt.new_cache(run.model)
    tokens = microgpt.encode(doc, run.vocab)
    found = []
    for position in range(min(run.config.block_size, len(tokens) - 1)):
        logits = microgpt.gpt(run.model, tokens[position], position, cache)
        found.append(-math.log(microgpt.softmax(logits)[tokens[position + 1]].data))
    return found


def test_held_out_loss_and_training_loss_are_means_over_predictions(cli):
    options = ['--val-fraction', 0.2, '--samples', 0, '--learning-rate', 0]
    result = cli(*TINY, '--steps', 24, *options)
    same = Run('small', microgpt.Config(1, 4, 2, 6))
    for docs, name in (same.docs[-6:], 'held-out'), (same.docs[:24], 'training'):
        found = [loss for doc in docs for loss in token_losses(same, doc)]
        assert f'{name} loss {sum(found) / len(found):.4f}' in result.stderr


HELD_OUT = {  # documents, share, how many are judged
    'none of a set that is too small': ('ab\nba\nabba\n', 0.1, None),
    'all but one at most': ('ab\nba\nabba\n', 1, 2),
    'none that training has seen': ('ab\n' * 50, 0.5, None),
}


@pytest.mark.parametrize('name', HELD_OUT)
def test_held_out_are(name, tmp_path, cli):
    text, fraction, count = HELD_OUT[name]
    (tmp_path / 'data').write_text(text)
    options = ['--steps', 1, '--samples', 0, '--val-fraction', fraction]
    found = re.search(r'\((\d+) documents\)', cli('--data', tmp_path / 'data', *options).stderr)
    assert (found and int(found[1])) == count


# ---- documents ---------------------------------------------------------------


def test_line_ends_and_byte_order_marks_make_no_difference(tmp_path, cli):
    text = UNICODE.read_text('utf-8')
    results = set()
    for data in (
        text.encode(),
        text.replace('\n', '\r\n').encode(),
        b'\xef\xbb\xbf' + text.encode(),
        ('\n\n' + text.strip()).encode(),
    ):
        (tmp_path / 'data.txt').write_bytes(data)
        settings = ['--data', tmp_path / 'data.txt', '--steps', 2, '--temperature', 2]
        results.add(cli(*settings, '--n-embd', 4).stdout)
    assert len(results) == 1 and not results.pop().isascii()


SAID = {  # documents, and the line that says what becomes of them
    'accents': ('zoe\u0308\nana\n', '1 documents were brought to normal form'),
    'jamo': ('\u1112\u1161\u11ab\n', '1 documents were brought to normal form'),
    'long': ('ab\n' + 'ab' * 60 + '\n', '1 documents do not fit into --block-size 16'),
    'fitting': ('abcdefghijklmno\n', 'num docs: 1\nvocab size'),
}


@pytest.mark.parametrize('name', SAID)
def test_what_becomes_of_documents_is_said(name, tmp_path, cli):
    (tmp_path / 'data').write_text(SAID[name][0], encoding='utf-8')
    result = cli('--data', tmp_path / 'data', '--steps', 0, '--samples', 0)
    assert SAID[name][1] in result.stderr and result.returncode == 0


def test_a_document_of_a_megabyte_costs_what_its_beginning_costs():
    same = Run('small')
    same.options = same.config
    tokens = microgpt.document_tokens('a' * 1_000_000, same)
    assert len(tokens) == same.config.block_size + 1


def test_input_txt_is_found_here_then_beside_the_script(tmp_path):
    tiny = ['--steps', 0, '--samples', 0, '--n-embd', 4]
    count = len(microgpt.load_docs(SCRIPT.with_name('input.txt')))
    assert f'num docs: {count}' in run(*tiny, cwd=tmp_path).stderr
    (tmp_path / 'input.txt').write_text('a\nb\n')
    assert 'num docs: 2' in run(*tiny, cwd=tmp_path).stderr


def test_without_input_txt_the_public_list_is_downloaded_whole_or_not_at_all(
    tmp_path, monkeypatch, cli
):
    served = tmp_path / 'served'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(microgpt, 'FILE', str(tmp_path / 'microgpt.py'))
    monkeypatch.setattr(microgpt, 'NAMES_URL', served.as_uri())
    refused(cli('--steps', 0), 'no input.txt, and no download', '--data')
    served.write_text('<html>please log in')
    refused(cli('--steps', 0), 'something else came in place of it', '--data')
    assert [path.name for path in tmp_path.iterdir()] == ['served']
    digest = microgpt.hashlib.sha256(served.read_bytes()).hexdigest()
    monkeypatch.setattr(microgpt, 'NAMES_SHA256', digest)
    assert cli('--steps', 0, '--samples', 0).returncode == 0
    assert (tmp_path / 'input.txt').read_bytes() == served.read_bytes()


def test_input_txt_is_a_clean_list_of_names():
    text = SCRIPT.with_name('input.txt').read_text('ascii')
    names = text.splitlines()
    assert 6000 <= len(names) <= 8500 and text.endswith('\n')
    assert names == sorted(set(names))
    assert all(re.fullmatch('[a-z]{2,15}', name) for name in names)
    assert set(''.join(names)) == set('abcdefghijklmnopqrstuvwxyz')


# ---- what is refused ---------------------------------------------------------


BAD_DATA = {
    'empty': (b'', 'no documents'),
    'blank': (b'\n \n\t\n', 'no documents'),
    'latin': (b'Zo\xeb\n', 'not a text in UTF-8'),
    'binary': (b'ab\0cd\n', 'binary'),
    'utf16': ('emma'.encode('utf-16'), 'UTF-8'),
    'missing': (None, 'No such file'),
}


@pytest.mark.parametrize('name', BAD_DATA)
def test_unusable_data_is_refused_in_one_line(name, tmp_path, cli):
    content, words = BAD_DATA[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    refused(cli('--data', tmp_path / name), name, words)


BAD_OPTIONS = {
    '--n-layer 0': '--n-layer must be from 1',
    '--n-embd -16': '--n-embd must be',
    '--block-size 0': '--block-size must be',
    '--n-embd 10': '--n-embd is no multiple of --n-head',
    '--n-embd 9999 --n-head 1 --n-layer 1000': 'too large',
    '--steps -1': '--steps must be',
    '--steps 1.5': "argument --steps: invalid int value: '1.5'",
    '--steps 10000000000000': '--steps must be',
    '--epochs 1000000000': '--steps must be',
    '--steps=--': '--steps cannot be []',
    '--seed x': "'x'",
    '--temperature -0.5': '--temperature must be from 0',
    '--temperature nan': '--temperature must be',
    '--learning-rate inf': '--learning-rate must be',
    '--batch-size 0': '--batch-size must be',
    '--val-fraction 1.1': '--val-fraction must be from 0 to 1',
    '--top-p -0.1': '--top-p must be',
    '--decay wavy': '--decay must be one of linear, cosine',
    '--steps 5 --epochs 1': '--epochs goes without --steps',
    '--no-such-option': 'no-such-option',
    '--workers -1': '--workers must be',
    '--prompt abcdefghijklmnopq': 'the length of --prompt is above --block-size',
    '--prompt abc --max-length 2': 'the length of --prompt is above',
    '--prompt': 'expected one argument',
    '--save-every 5': '--save-every needs --save',
    '--min-length 5 --max-length 3': '--min-length is above',
    '--min-length 17': '--min-length is above --block-size',
    '--save=': "--save cannot be ''",
    '--load=': "--load cannot be ''",
    '--save same --log same': 'the same file twice',
    '--save .': 'not a file',
    '--log /dev/full': 'not a file',
    '--save no/such/folder/model': 'cannot be written there',
    '--log no/such/folder/log': 'cannot be written there',
    '--save ' + 'a' * 300: 'name too long',
    '--load missing': 'No such file',
    '--load .': 'Is a directory',
    '--inspect Emma': "--inspect: 'E' is not in the vocabulary of the model, which is a to z",
    '--prompt Q': "--prompt: 'Q' is not in the vocabulary",
}


@pytest.mark.parametrize('args', BAD_OPTIONS)
def test_a_bad_option_is_refused_in_one_line_before_training(
    args, tmp_path, monkeypatch, cli
):
    monkeypatch.chdir(tmp_path)
    result = cli('--data', SMALL, *args.split())
    refused(result, BAD_OPTIONS[args])
    assert 'step 1' not in result.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('options', ['', '--batch-size 2'])
def test_training_that_diverges_stops_and_keeps_what_there_was(options, tmp_path, cli):
    settings = [*TINY, *options.split(), '--save', tmp_path / 'model', '--steps', 100]
    refused(cli(*settings, '--learning-rate', '1e8'), 'step ', '--grad-clip', status=1)
    assert not (tmp_path / 'model').exists()


# ---- import and help ---------------------------------------------------------


def test_importing_does_nothing():
    check = (
        'import random, sys; sys.path.insert(0, sys.argv[1]); '
        'before = random.getstate(); import microgpt; '
        'assert random.getstate() == before and not microgpt.Value.tape'
    )
    command = [sys.executable, '-c', check, str(SCRIPT.parent)]
    result = subprocess.run(command, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, b'', b'')


def test_help_shows_every_option_with_its_default_in_80_columns():
    result = run('--help', env=env(COLUMNS='80'))
    words = ' '.join(result.stdout.split())
    for name, row in microgpt.OPTIONS.items():
        is_number = row.type in (int, float) and row.default is not None
        shown = f' ({row.default:g})' if is_number else ''
        assert microgpt.flag(name) in words and row.help + shown in words
    assert 'example' in words and max(map(len, result.stdout.splitlines())) <= 80


# ---- training ----------------------------------------------------------------


def test_a_batch_takes_the_documents_in_their_order(tmp_path, cli):
    log = tmp_path / 'log'
    settings = ['--data', SMALL, '--val-fraction', 0, '--steps', 1, '--samples', 0]
    cli(*settings, '--batch-size', 35, '--log', log)
    same = Run('small')
    first = [same.loss_at(step).data for step in range(35)]  # 31st: the first again
    assert losses(log) == pytest.approx([sum(first) / 35], rel=1e-12)


def moments(cli, tmp_path, *options):
    """Adam's m after one step with these options."""
    path = tmp_path / 'model'
    cli(*TINY, '--steps', 1, '--save', path, '--samples', 0, *options)
    m = microgpt.load_checkpoint(path).adam.m
    path.unlink()
    return m


def test_a_batch_gives_the_mean_of_the_gradients(tmp_path, cli):
    same = Run('small', microgpt.Config(1, 4, 2, 6))
    gradients = []
    for step in range(2):
        tokens = microgpt.encode(same.docs[step], same.vocab)
        found = microgpt.document_gradients(same.model, same.params, tokens)
        gradients.append(found[1])
    expected = [0.15 * (g + h) / 2 for g, h in zip(*gradients)]
    found = moments(cli, tmp_path, '--batch-size', 2)
    assert found == pytest.approx(expected, rel=1e-12)


def test_clipping_bounds_the_length_of_the_gradient(tmp_path, cli):
    free = moments(cli, tmp_path)
    assert moments(cli, tmp_path, '--grad-clip', 1e6) == free
    length = math.sqrt(sum(m * m for m in free))  # of 0.15 times the gradient
    expected = [m * 0.15 * 0.01 / length for m in free]
    clipped = moments(cli, tmp_path, '--grad-clip', 0.01)
    assert clipped == pytest.approx(expected, rel=1e-9)


def test_epochs_are_rounds_through_the_training_documents(cli):
    settings = ['--data', SMALL, *SIZES, '--epochs', 2, '--batch-size', 4]
    assert 'step 14 / 14' in cli(*settings).stderr  # 27 of 30 documents twice, by 4


def test_the_rate_starts_full_and_falls_to_zero():
    at = {
        name: [decay(progress) for progress in (0, 0.25, 0.5, 1)]
        for name, decay in microgpt.DECAYS.items()
    }
    assert at['linear'] == [1, 0.75, 0.5, 0]
    assert at['cosine'] == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])


def test_the_number_of_workers_changes_no_bit(tmp_path):
    settings = ['--data', SMALL, *SIZES, '--steps', 4, '--batch-size', 5]
    results = []
    for workers in (1, 2, 9):
        path, log = tmp_path / f'model {workers}', tmp_path / f'log {workers}'
        outputs = ['--workers', workers, '--save', path, '--log', log]
        result = run(*settings, *outputs, '--grad-clip', 0.5)
        assert result.returncode == 0 and 'without' not in result.stderr
        results.append((result.stdout, path.read_bytes(), log.read_text()))
    assert results[0][0] and all(result == results[0] for result in results)


# ---- names -------------------------------------------------------------------

P = [0.1, 0.5, 0.02, 0.25, 0.13]  # the probabilities of five tokens
RESTRICTED = {  # top_k, top_p: the tokens that may be drawn
    (0, 1.0): [0, 1, 2, 3, 4],
    (99, 1.0): [0, 1, 2, 3, 4],
    (3, 1.0): [1, 3, 4],
    (1, 1.0): [1],
    (0, 0.0): [1],
    (0, 0.49): [1],
    (0, 0.51): [1, 3],
    (0, 0.76): [1, 3, 4],
    (0, 0.99): [0, 1, 2, 3, 4],
    (2, 0.99): [1, 3],
    (2, 0.6): [1],  # 0.5 of 0.75 is more than 0.6
}


@pytest.mark.parametrize('limits', RESTRICTED)
def test_top_k_and_top_p_leave_the_likeliest(limits):
    assert microgpt.restrict(P, *limits) == RESTRICTED[limits]
    assert P == [0.1, 0.5, 0.02, 0.25, 0.13]


def test_draws_have_the_probabilities_that_remain(cli, checkpoint):
    run, n = microgpt.load_checkpoint(checkpoint), 400
    run.options.temperature, run.options.top_k = 1.0, 4
    logits = microgpt.gpt(run.model, 26, 0, microgpt.new_cache(run.model))
    p = microgpt.numbers(microgpt.softmax(logits))
    likeliest = sorted(range(27), key=lambda token: -p[token])[:4]
    first = collections.Counter(microgpt.new_name(run)[:1] for _ in range(n))
    assert set(first) <= {(run.vocab[:-1] + '\0')[t].strip('\0') for t in likeliest}
    for token in likeliest:
        share = p[token] / sum(p[t] for t in likeliest)
        count = first[run.vocab[token].strip()]
        assert abs(count - n * share) <= 4 * math.sqrt(n * share * (1 - share))


def test_limits_that_allow_everything_change_no_name(cli):
    plain = cli(*TINY).stdout
    assert cli(*TINY, '--top-p', 1, '--top-k', 27).stdout == plain
    greedy = {cli(*TINY, '--temperature', t, '--samples', 1).stdout for t in (0, 1e-300)}
    assert len(greedy) == 1 and greedy != {plain.splitlines(True)[0]}


@pytest.mark.parametrize('prompt', ['kw', 'kwamea', 'e\u0301', '\u00e9'])
def test_every_name_begins_with_the_prompt(prompt, cli):
    settings = ['--data', UNICODE if 'k' not in prompt else SMALL, *SIZES, '--steps', 2]
    names = cli(*settings, '--prompt', prompt, '--temperature', 2).stdout.splitlines()
    start = microgpt.normal(prompt)
    assert len(names) == 20 and all(name.startswith(start) for name in names)
    assert len(set(names)) > 5 or len(prompt) == 6  # which is as long as names can be


def test_filters_hold_for_every_name(cli):
    filters = ['--min-length', 2, '--max-length', 4, '--alphabetic', '--unique']
    result = cli('--data', UNICODE, *SIZES, '--steps', 0, '--temperature', 5, *filters)
    names = result.stdout.splitlines()
    assert len(names) == len(set(names)) == 20
    assert all(2 <= len(name) <= 4 and name.isalpha() for name in names)


WANTED = {  # a name and an option: is it wanted?
    ('zo\u00eb', 'alphabetic'): True,
    ('\u0905\u0928\u093f\u0932', 'alphabetic'): True,  # Anil, with a vowel mark
    ("o'neill", 'alphabetic'): False,
    ('', 'alphabetic'): False,
    ('anna', 'unique'): False,
    ('anna', 'novel'): True,
    ('bert', 'novel'): False,
    ('', 'novel'): False,
}


@pytest.mark.parametrize('name, option', WANTED)
def test_a_name_is_wanted_if_it_passes_the_filters(name, option):
    options = microgpt.all_options({option: True})
    wanted = microgpt.is_wanted(name, options, printed=['anna'], known={'', 'bert'})
    assert bool(wanted) is WANTED[name, option]


def test_the_share_of_new_names_and_the_missing_ones_are_told(tmp_path, cli):
    result = cli('--data', SMALL, '--steps', 30, '--temperature', 3)
    known = {'', *microgpt.load_docs(SMALL)}  # an empty line is no new name
    new = sum(name not in known for name in result.stdout.splitlines())
    assert f'{new} of 20 names are new (not in the data)' in result.stderr
    (tmp_path / 'data').write_text('a\n')
    few = ['--steps', 0, '--block-size', 1, '--unique']
    result = cli('--data', tmp_path / 'data', *few)
    assert sorted(result.stdout.split('\n')) == ['', '', 'a']
    assert '18 names are missing' in result.stderr


def test_control_characters_in_names_are_printed_as_escapes(tmp_path, cli):
    (tmp_path / 'data').write_text('a\x1b[31m\nb\x07\n')
    settings = ['--steps', 101, '--temperature', 5, '--samples', 50]
    result = cli('--data', tmp_path / 'data', *settings)
    assert '\x1b' not in result.stdout + result.stderr and '\\x1b' in result.stdout
