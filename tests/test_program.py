"""The command line: what it prints and refuses, how it trains, judges and samples."""

import math
import random
import re
import types

import pytest
from conftest import SCRIPT, SIZES, SMALL, TINY, UNICODE, Run, refused, run

import microgpt
from microgpt import Config, load_checkpoint


def test_stdout_has_the_names_and_stderr_sizes_progress_and_judgement(cli):
    result = cli('--data', SMALL, '--steps', 101, '--n-embd', 4, '--n-head', 1)
    lines = result.stderr.splitlines()
    assert lines[:3] == ['num docs: 30', 'vocab size: 27', 'num params: 472']
    form = r'step +(\d+) / 101 \| mean loss \d\.\d{4} \| [a-z]*, [a-z]*, [a-z]*'
    steps = [int(re.fullmatch(form, line)[1]) for line in lines[3:14]]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101]
    form = r'held-out loss \d\.\d{4} nats per token \(3 documents\), '
    assert re.fullmatch(form + r'training loss \d\.\d{4}', lines[14])
    assert re.fullmatch(r'\d+ of 20 names are new \(not in the data\)', lines[15])
    assert re.fullmatch('([a-z]*\n){20}', result.stdout) and len(lines) == 16


def test_losses_rates_and_names_are_those_of_the_reference(tmp_path, cli):
    options = '--steps 60 --seed 7 --learning-rate 0.02 --n-layer 2 --n-embd 12'
    options += ' --n-head 3 --block-size 6 --temperature 0.8 --val-fraction 0'
    reference, log = Run('unicode').reference, tmp_path / 'log'
    result = cli(*options.split(), '--data', UNICODE, '--log', log)
    assert result.stdout.splitlines() == reference['samples']
    header, *rows = log.read_bytes().decode().split('\n')[:-1]
    assert header == 'step,loss,learning_rate'
    steps, losses, rates = zip(*(map(float, row.split(',')) for row in rows))
    assert steps == tuple(range(1, 61))
    assert losses == pytest.approx(reference['losses'], rel=1e-9)
    assert rates == tuple(0.02 * (1 - i / 60) for i in range(60))


def test_every_terminal_can_print_the_names_and_none_obeys_them(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONIOENCODING', 'ascii')
    (tmp_path / 'data').write_text('大\x07\x08\x0e\x1ba輔\n', 'utf-8')
    settings = ['--data', tmp_path / 'data', *SIZES, '--steps', 1, '--temperature', 5]
    result = run(*settings, '--inspect', '大')
    assert result.returncode == 0 and '\\u5927' in result.stdout
    for printed in (result.stdout, re.search('step .*', result.stderr)[0]):
        assert '\x1b' not in printed and '\\x1b' in printed


def test_importing_does_nothing(capsys):
    random.seed(5)
    before = random.getstate()
    module = types.ModuleType('imported')
    exec(SCRIPT.read_text('utf-8'), module.__dict__)
    assert random.getstate() == before and module.Value.tape == []
    assert capsys.readouterr() == ('', '')


def test_help_shows_every_option_with_its_default_in_80_columns(monkeypatch):
    monkeypatch.setenv('COLUMNS', '80')
    result = run('--help')
    words = ' '.join(result.stdout.split())
    for name, row in microgpt.OPTIONS.items():
        default = f' ({row.default:g})' if type(row.default) in (int, float) else ''
        assert microgpt.flag(name) in words and row.help + default in words
    assert 'example' in words and max(map(len, result.stdout.splitlines())) <= 80


# ---- documents ---------------------------------------------------------------


def test_held_out_loss_and_training_loss_are_means_over_predictions(cli):
    options = '--block-size 9 --batch-size 2 --val-fraction 0.2 --learning-rate 0'
    result = cli(*TINY, *options.split(), '--samples', 0)  # 12 steps
    same = Run('small', Config(1, 4, 2, 9))
    losses = [same.loss_at(step).data for step in range(30)]
    counts = [min(9, len(doc) + 1) for doc in same.docs]  # of predictions
    nats = [loss * count for loss, count in zip(losses, counts)]
    for name, part in ('training', slice(24)), ('held-out', slice(24, 30)):
        mean = sum(nats[part]) / sum(counts[part])
        assert f'{name} loss {mean:.4f}' in result.stderr
    tokens = microgpt.document_tokens('a' * 9 + 'é', same)
    assert tokens == [26, *[0] * 9]  # the rest is not even looked at


NORMAL = '1 documents were brought to normal form (Unicode NFC)'
CUT = '1 documents do not fit into --block-size 16 and are cut'
TOLD = {  # documents, the share to hold out, and what is told of them
    'accents': ('zoe\u0308\nana\n', 0.1, NORMAL),
    'a document that is too long': ('ab\n' + 'a' * 16 + '\n', 0.1, CUT),
    'one that just fits, from Windows': ('\ufeff' + 'a' * 15 + '\r\n', 0.1, ''),
    'blank lines': ('\n \n' * 10 + 'ab\nba\n', 0.1, ''),
    'too few to hold one out': ('ab\nba\nb\n', 0.1, ''),
    'all but one': ('ab\nba\nb\n', 1, 'held-out loss 2.2 nats per token (2 documents)'),
    'only what training has seen': ('ab\n' * 50, 0.5, ''),
}


@pytest.mark.parametrize('name', TOLD)
def test_what_becomes_of_documents_is_told(name, tmp_path, cli):
    text, share, told = TOLD[name]
    (tmp_path / 'data').write_bytes(text.encode())
    settings = ['--data', tmp_path / 'data', '--steps', 0, '--samples', 0]
    result = cli(*settings, '--val-fraction', share)
    log = re.sub(r'loss [\d.]+', 'loss 2.2', result.stderr)
    assert re.sub('(num|vocab) .*\n', '', log).strip() == told


def test_input_txt_is_found_or_downloaded_whole(tmp_path, monkeypatch, cli):
    here, beside, served = map(tmp_path.joinpath, ('input.txt', 'beside', 'served'))
    beside.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(microgpt, 'FILE', str(beside / 'microgpt.py'))
    monkeypatch.setattr(microgpt, 'NAMES_URL', served.as_uri())
    command = ['--steps', 0, '--samples', 0]
    refused(cli(*command), 'no input.txt, and no download', '--data')
    served.write_text('a\nb\nc\n')
    refused(cli(*command), 'not the expected file', '--data')
    assert not here.exists()
    digest = microgpt.hashlib.sha256(served.read_bytes()).hexdigest()
    monkeypatch.setattr(microgpt, 'NAMES_SHA256', digest)
    assert cli(*command).returncode == 0
    assert here.read_bytes() == served.read_bytes()
    (beside / 'input.txt').write_text('a\nb\n')
    assert 'num docs: 3' in cli(*command).stderr  # here comes first
    here.unlink()
    assert 'num docs: 2' in cli(*command).stderr


def test_input_txt_is_a_clean_list_of_names():
    text = SCRIPT.with_name('input.txt').read_text('ascii')
    names = text.splitlines()
    assert names == sorted(set(names)) and text.endswith('\n')
    assert all(re.fullmatch('[a-z]{2,15}', name) for name in names)


# ---- what is refused ---------------------------------------------------------

UNUSABLE = {
    'blank': b'\n \n\t\n',
    'latin': b'Zo\xeb\n',
    'binary': b'ab\0cd\n',
}
BAD_OPTIONS = {
    '--data blank': 'blank: no documents',
    '--data latin': 'latin: not UTF-8 text',
    '--data binary': 'binary: a binary file',
    '--n-layer 0': '--n-layer must be from 1',
    '--n-embd 10': '--n-head must divide --n-embd',
    '--n-embd 9999 --n-head 1 --n-layer 1000': 'too large',
    '--steps -1': '--steps must be',
    '--steps 1.5': "argument --steps: invalid int value: '1.5'",
    '--epochs 1000000000': '--steps must be',
    '--steps=--': '--steps',  # in words that depend on Python
    '--temperature nan': '--temperature must be',
    '--batch-size 0': '--batch-size must be',
    '--val-fraction 1.1': '--val-fraction must be from 0 to 1',
    '--top-p 1.1': '--top-p must be from 0 to 1',
    '--decay wavy': '--decay must be one of linear, cosine',
    '--steps 5 --epochs 1': 'not both --steps and --epochs',
    '--step 5': 'unrecognized arguments: --step',
    '--prompt abcdefghijklmnopq': '--prompt is longer than names may be',
    '--save-every 5': '--save-every needs --save',
    '--min-length 5 --max-length 3': '--min-length is longer',
    '--save=': "--save cannot be ''",
    '--load=': 'No such file',
    '--save same --log same': 'the same file twice',
    '--save .': 'not a file',
    '--save new/': 'not a file',
    '--log .': 'not a file',
    '--save no/such/folder/model': 'cannot be written there',
    '--save ' + 'a' * 300: 'name too long',
    '--load missing': 'No such file',
    '--inspect Emma': "--inspect: 'E' is not in the vocabulary of the model",
    '--prompt Q': "--prompt: 'Q' is not in the vocabulary",
}


@pytest.mark.parametrize('args', BAD_OPTIONS)
def test_bad_options_are_refused_before_training(args, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    for name, content in UNUSABLE.items():
        (tmp_path / name).write_bytes(content)
    result = cli('--data', SMALL, '--learning-rate', 1e9, *args.split())  # or diverges
    refused(result, BAD_OPTIONS[args])
    assert 'mean loss' not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == set(UNUSABLE)


@pytest.mark.parametrize('size', [1, 2])
def test_training_that_diverges_stops_and_keeps_what_there_was(size, tmp_path, cli):
    settings = [*TINY, '--batch-size', size, '--save', tmp_path / 'model']
    refused(cli(*settings, '--learning-rate', '1e8'), 'step ', '--grad-clip', status=1)
    assert not (tmp_path / 'model').exists()


# ---- training ----------------------------------------------------------------


@pytest.mark.parametrize('size', [1, 35])  # the 31st document is the first again
def test_a_batch_gives_the_mean_gradient_within_the_limit(size, tmp_path, cli):
    same = Run('small', Config(1, 4, 2, 6))
    loss = sum(same.loss_at(step) for step in range(size)) / size
    loss.backward()
    gradients = [p.grad for p in same.params]
    length = math.hypot(*gradients)
    for limit, factor in (0, 1), (2 * length, 1), (length / 2, 0.5):
        path, log = tmp_path / f'model {limit}', tmp_path / f'log {limit}'
        settings = [*TINY, '--val-fraction', 0, '--batch-size', size, '--save', path]
        cli(*settings, '--steps', 1, '--grad-clip', limit, '--log', log)
        assert float(log.read_text().split(',')[3]) == pytest.approx(loss.data)
        expected = [0.15 * factor * gradient for gradient in gradients]
        assert load_checkpoint(path).adam.m == pytest.approx(expected)


def test_the_rate_starts_full_and_falls_to_zero():
    expected = {'linear': [1, 0.75, 0.5, 0], 'cosine': [1, 0.85355, 0.5, 0]}
    for name, decay in microgpt.DECAYS.items():
        rates = [decay(progress) for progress in (0, 0.25, 0.5, 1)]
        assert rates == pytest.approx(expected[name], rel=1e-5)


# ---- names -------------------------------------------------------------------

P = [0.1, 0.5, 0.02, 0.25, 0.13]  # the probabilities of five tokens
RESTRICTED = {  # top_k, top_p: the tokens that may be drawn
    (0, 1.0): [0, 1, 2, 3, 4],
    (3, 1.0): [1, 3, 4],
    (0, 0.49): [1],
    (0, 0.51): [1, 3],
    (0, 0.76): [1, 3, 4],
    (2, 0.6): [1],  # 0.5 of 0.75 is more than 0.6
}


@pytest.mark.parametrize('limits', RESTRICTED)
def test_top_k_and_top_p_leave_the_likeliest(limits):
    assert microgpt.restrict(P, *limits) == RESTRICTED[limits]


def test_at_temperature_0_every_name_is_the_likeliest(checkpoint, cli):
    settings = ['--top-k 1', '--top-p 0', '--temperature 0', '--temperature 1e-300']
    command = ['--load', checkpoint, '--samples', 3]
    printed = [cli(*command, *each.split()).stdout for each in settings]
    assert len(set(printed)) == 1 and printed[0].count('\n') == 3


@pytest.mark.parametrize('prompt', ['Zo', 'Soreno', 'e\u0301'])
def test_every_name_begins_with_the_prompt(prompt, cli):
    settings = ['--data', UNICODE, *SIZES, '--steps', 0, '--temperature', 2]
    names = cli(*settings, '--prompt', prompt).stdout.splitlines()
    start = microgpt.normal(prompt)
    assert len(names) == 20 and all(name.startswith(start) for name in names)
    assert len(set(names)) > 5 or len(prompt) == 6  # which is as long as names can be


WANTED = {  # a name, an option and its value: is it wanted?
    ('ab', 'min_length', 2): True,
    ('ab', 'min_length', 3): False,
    ('ab', 'max_length', 2): True,
    ('ab', 'max_length', 1): False,
    ('zo\u00eb', 'alphabetic', True): True,
    ('\u0905\u0928\u093f\u0932', 'alphabetic', True): True,  # Anil, with a vowel mark
    ("o'neill", 'alphabetic', True): False,
    ('', 'alphabetic', True): False,
    ('anna', 'unique', True): False,
    ('bert', 'novel', True): False,
    ('', 'novel', True): False,
}


@pytest.mark.parametrize('name, option, value', WANTED)
def test_a_name_is_wanted_if_it_passes_the_filters(name, option, value):
    options = microgpt.all_options({option: value})
    wanted = microgpt.is_wanted(name, options, printed=['anna'], known={'', 'bert'})
    assert bool(wanted) is WANTED[name, option, value]


def test_how_many_names_are_new_and_how_many_are_missing_is_told(tmp_path, cli):
    (tmp_path / 'data').write_text('ab\nba\n')
    options = '--steps 0 --n-embd 4 --n-head 1 --block-size 2 --unique --samples 8'
    result = cli('--data', tmp_path / 'data', *options.split())
    assert sorted(result.stdout.splitlines()) == ['', 'a', 'aa', 'ab', 'b', 'ba', 'bb']
    missing, new = result.stderr.splitlines()[-2:]
    assert missing == '1 names are missing, for too many were refused'
    assert new == '4 of 7 names are new (not in the data)'  # and the empty one is not
