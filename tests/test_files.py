"""Files: exact, whole whatever happens, and nothing is taken on trust."""

import hashlib
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import sys

import pytest
from conftest import (
    SIZES,
    SMALL,
    TESTS,
    TINY,
    env,
    paused,
    refused,
    run,
    start,
    wait_for,
)

import microgpt
from microgpt import Problem, load_checkpoint, numbers

FULL = [*TINY, *'--seed 5 --batch-size 2 --grad-clip 0.5 --decay cosine'.split()]


def state(path):
    """All that a checkpoint consists of, in a form that can be compared."""
    run = load_checkpoint(path)
    adam = run.adam
    everything = [numbers(adam.params), adam.m, adam.v, adam.step, run.rng.getstate()]
    return [run.settings, run.vocab, run.digest, *everything]


def parts(path):
    """The header, as a dict, and the numbers of a checkpoint."""
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_checkpoint(path, header, doubles):
    """A checkpoint with this header and these numbers, and a hash that is right."""
    header['__metadata__'] = {**header['__metadata__'], 'sha256': '0' * 64}
    text = json.dumps(header).encode()
    data = struct.pack('<Q', len(text)) + text + doubles
    digest = hashlib.sha256(data).hexdigest()
    path.write_bytes(data.replace(b'0' * 64, digest.encode(), 1))


# ---- going on exactly --------------------------------------------------------


def test_a_loaded_model_writes_the_names_that_its_training_printed(tmp_path):
    path = tmp_path / 'model'
    trained = run(*FULL, '--save', path, '--samples', 30, '--temperature', 1.5)
    loaded = run('--load', path)
    assert trained.stdout == loaded.stdout and trained.stdout.count('\n') == 30


def test_another_seed_draws_other_names_from_the_same_model(checkpoint):
    names = [
        run('--load', checkpoint, '--samples', 20, '--temperature', 2, *seed).stdout
        for seed in ((), ('--seed', 1), ('--seed', 2), ('--seed', 1))
    ]
    assert names[1] == names[3] and len(set(names)) == 3


KINDS = {
    'plain': [],
    'batches, clipping, cosine': FULL[-4:] + ['--batch-size', '3'],
    'workers': ['--batch-size', '4', '--workers', '2'],
    'epochs': ['--batch-size', '2', '--epochs', '1'],
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_in_pieces_is_bit_for_bit_the_run_in_one(kind, tmp_path):
    settings = ['--data', SMALL, *SIZES, *KINDS[kind]]
    if kind != 'epochs':
        settings += ['--steps', 14]
    straight, log = tmp_path / 'straight', tmp_path / 'log'
    names = run(*settings, '--save', straight, '--log', log).stdout
    cut, cut_log = tmp_path / 'cut', tmp_path / 'cut log'
    for stop in (1, 5, 9):
        stop_after(stop, [*settings, '--save', cut, '--log', cut_log], cut)
        assert load_checkpoint(cut).adam.step == stop
        settings = ['--load', cut]
    assert run('--load', cut, '--save', cut, '--log', cut_log).stdout == names
    assert state(cut) == state(straight)
    assert cut_log.read_text() == log.read_text()


# A program like microgpt.py that sends itself a signal after a step, and what it takes.
STOPPING = """
import os, signal, sys
sys.path.insert(0, os.environ['PROJECT'])
import microgpt

def note(self, step, loss, lesson):
    original(self, step, loss, lesson)
    if step == int(os.environ['STOP']):
        os.kill(os.getpid(), signal.SIGINT)

original, microgpt.Progress.note = microgpt.Progress.note, note
if __name__ == '__main__':
    sys.exit(microgpt.cli())
"""


def stop_after(step, args, path):
    """Run the program so that Ctrl-C comes right after a step."""
    script = path.with_name('stopping.py')
    script.write_text(STOPPING)
    command = [sys.executable, str(script), *map(str, args)]
    variables = env(PROJECT=str(TESTS.parent), STOP=str(step))
    result = subprocess.run(
        command, capture_output=True, encoding='utf-8', timeout=60, env=variables
    )
    assert result.returncode == 130, result.stderr
    assert f'stopped by Ctrl-C after step {step}' in result.stderr


def test_more_steps_go_on_and_fewer_only_sample(checkpoint):
    more = run(
        '--load', checkpoint, '--steps', 20, '--save', checkpoint, '--samples', 1
    )
    assert 'step 13 / 20' in more.stderr and 'step 20 / 20' in more.stderr
    saved = load_checkpoint(checkpoint)
    assert saved.adam.step == 20 and saved.settings['steps'] == 20
    fewer = run('--load', checkpoint, '--steps', 0, '--samples', 1)
    assert 'step ' not in fewer.stderr and fewer.stdout.count('\n') == 1


def test_what_the_checkpoint_says_can_be_undone(tmp_path):
    path = tmp_path / 'model'
    run(*TINY, '--save', path, '--novel', '--samples', 3)
    assert load_checkpoint(path).settings['novel'] is True
    data = tmp_path / 'small.txt'
    assert run('--load', path, '--no-novel', cwd=tmp_path).returncode == 0
    assert not data.exists()


def test_what_contradicts_the_checkpoint_is_refused(checkpoint):
    for option in ('--n-layer', '--n-embd', '--n-head', '--block-size'):
        refused(run('--load', checkpoint, option, 8), option, 'for good')
    refused(run('--load', checkpoint, '--val-fraction', 0.5), '--val-fraction')


# ---- the documents of a checkpoint -------------------------------------------


@pytest.fixture
def moved(tmp_path):
    """A checkpoint, its data (a copy of SMALL), and an empty folder."""
    data, path, folder = tmp_path / 'data.txt', tmp_path / 'model', tmp_path / 'folder'
    folder.mkdir()
    shutil.copy(SMALL, data)
    result = run(
        '--data', data.name, *SIZES, '--steps', 3, '--save', path, cwd=tmp_path
    )
    assert result.returncode == 0
    return path, data, folder


def test_a_relative_path_of_data_is_found_from_another_folder(moved):
    path, _, folder = moved
    result = run('--load', path, '--steps', 5, cwd=folder)
    assert result.returncode == 0 and 'step 5 / 5' in result.stderr


def test_sampling_needs_no_data_but_training_says_where_it_looked(moved):
    path, data, folder = moved
    names = run('--load', path).stdout
    data.unlink()
    (folder / 'input.txt').write_text('other\ndocuments\n')
    assert run('--load', path, cwd=folder).stdout == names
    refused(run('--load', path, '--steps', 4, cwd=folder), str(data), '--data')
    refused(run('--load', path, '--novel', cwd=folder), str(data), '--data')


def test_other_documents_are_refused_unless_they_were_asked_for(moved):
    path, data, _ = moved
    data.write_text(SMALL.read_text() + 'emma\n')
    refused(run('--load', path, '--steps', 4), str(data), 'not the documents', '--data')
    result = run('--load', path, '--steps', 4, '--data', data)
    assert result.returncode == 0
    assert f'{data}: not the documents that {path} was trained on' in result.stderr


def test_documents_with_unknown_characters_are_refused(moved, tmp_path):
    path, data, _ = moved
    data.write_text('emma\nŁucja\n', encoding='utf-8')
    refused(run('--load', path, '--data', data, '--steps', 4), 'vocabulary', 'Ł')


# ---- the format --------------------------------------------------------------


def test_the_file_is_safetensors_with_all_that_a_run_consists_of(checkpoint):
    header, doubles = parts(checkpoint)
    metadata = header.pop('__metadata__')
    assert all(isinstance(value, str) for value in metadata.values())
    assert json.loads(metadata['settings'])['n_embd'] == 4 and metadata['step'] == '12'
    assert metadata['vocabulary'] == 'abcdefghijklmnopqrstuvwxyz'
    saved = load_checkpoint(checkpoint)
    named = microgpt.tensors(saved.model)
    assert {name for name in header if not name.startswith('adam.')} == set(named)
    end = 0
    for entry in header.values():  # in the order of the file, without a gap
        assert entry['dtype'] == 'F64' and entry['data_offsets'][0] == end
        end = entry['data_offsets'][1]
        rows, columns = entry['shape']
        assert end - entry['data_offsets'][0] == 8 * rows * columns
    assert end == len(doubles)
    first, last = header['layer0.mlp_fc1']['data_offsets']
    stored = struct.unpack(f'<{(last - first) // 8}d', doubles[first:last])
    assert list(stored) == [
        value.data for row in named['layer0.mlp_fc1'] for value in row
    ]
    assert struct.unpack('<d', doubles[-8:])[0] == saved.adam.v[-1]


def test_a_checkpoint_of_november_2026_still_loads():
    # Written by the program as it was before settings had a digest of the documents.
    path = TESTS / 'reference' / 'checkpoint_of_2026_11.bin'
    result = run('--load', path, '--samples', 5, '--no-novel')
    assert result.returncode == 0
    assert result.stdout.split() == 'oysmig quprhb iijndg ssblok fkyotx'.split()
    assert load_checkpoint(path).adam.step == 12


def test_settings_that_a_checkpoint_lacks_have_their_defaults(checkpoint):
    header, doubles = parts(checkpoint)
    settings = json.loads(header['__metadata__']['settings'])
    del settings['top_p'], settings['unique']
    header['__metadata__']['settings'] = json.dumps(settings)
    write_checkpoint(checkpoint, header, doubles)
    assert load_checkpoint(checkpoint).settings['top_p'] == 1.0


@pytest.mark.parametrize('name', ['flip', 'cut', 'splice'])
def test_damage_anywhere_is_refused_or_changes_nothing(name, checkpoint):
    data, before, rng = checkpoint.read_bytes(), state(checkpoint), random.Random(name)
    n_refused = 0
    for _ in range(400):
        place = rng.choice(
            [rng.randrange(len(data)), rng.randrange(9000), rng.randrange(16)]
        )
        if name == 'flip':
            flipped = data[place] ^ 1 << rng.randrange(8)
            new = data[:place] + bytes([flipped]) + data[place + 1 :]
        elif name == 'cut':
            new = data[:place]
        else:
            new = (
                data[:place]
                + rng.randbytes(rng.randrange(9))
                + data[place + rng.randrange(9) :]
            )
        checkpoint.write_bytes(new)
        try:
            assert state(checkpoint) == before and new == data
        except Problem as problem:
            n_refused += 1
            assert str(checkpoint) in str(problem) or 'so many' in str(problem)
    assert n_refused > 350


def metadata(**changes):
    return lambda header: header['__metadata__'].update(changes)


def settings(**changes):
    def change(header):
        old = json.loads(header['__metadata__']['settings'])
        header['__metadata__']['settings'] = json.dumps({**old, **changes})

    return change


HOSTILE = {  # all with a hash that is right
    'a wrong dtype': lambda h: h['wte'].update(dtype='F32'),
    'a wrong shape': lambda h: h['wte'].update(shape=[4, 27]),
    'overlapping offsets': lambda h: h['wpe'].update(
        data_offsets=h['wte']['data_offsets']
    ),
    'a missing tensor': lambda h: h.pop('lm_head'),
    'a missing moment': lambda h: h.pop('adam.v.wte'),
    'an extra tensor': lambda h: h.update(more=h['wte']),
    'an entry of another kind': lambda h: h.update(wte=[1]),
    'an unknown version': metadata(version='microgpt 99'),
    'a version of another kind': metadata(version=['microgpt 1']),
    'a vocabulary out of order': metadata(vocabulary='ba'),
    'a vocabulary of another kind': metadata(vocabulary=[1]),
    'a vocabulary with half a character': metadata(vocabulary='abc\ud800'),
    'a vocabulary with a line end': metadata(vocabulary='\nabc'),
    'a negative step': metadata(step='-1'),
    'a step of another kind': metadata(step='x'),
    'a random state that is too short': metadata(random='[3, [1, 2], null]'),
    'a random state of huge numbers': metadata(random=f'[3, {[9**99] * 625}, null]'),
    'a random state beyond its words': metadata(
        random=f'[3, {[1] * 624 + [625]}, null]'
    ),
    'a random state with a text in it': metadata(random=f'[3, {[1] * 625}, "x"]'),
    'settings of another kind': metadata(settings='7'),
    'settings that nest deeply': metadata(settings='[' * 100_000),
    'a number of a million digits': metadata(settings='9' * 1_000_000),
    'a setting that is unknown': settings(load='/etc/passwd'),
    'a setting of another kind': settings(n_layer=True),
    'a size of zero': settings(n_embd=0),
    'a gigantic size': settings(n_embd=10**12),
    'a very large size': settings(n_embd=4000),
    'many layers': settings(n_layer=1000),
    'hundreds of thousands of layers': settings(n_layer=500_000),
    'heads that do not divide': settings(n_head=3),
    'a decay that is unknown': settings(decay='constant'),
    'data with a NUL': settings(data='a\0b'),
    'a prompt with half a character': settings(prompt='\udfff'),
    'a learning rate that is none': settings(learning_rate=float('nan')),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_header_is_refused_at_once(name, checkpoint):
    header, doubles = parts(checkpoint)
    HOSTILE[name](header)
    write_checkpoint(checkpoint, header, doubles)
    with pytest.raises(Problem):
        load_checkpoint(checkpoint)


def test_a_header_that_asks_for_gigabytes_is_refused_in_time(checkpoint):
    import resource

    header, doubles = parts(checkpoint)
    settings(n_embd=1200, n_head=1)(header)
    write_checkpoint(checkpoint, header, doubles)

    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))

    refused(run('--load', checkpoint, preexec_fn=little_memory), 'sizes are wrong')


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'abc',
        b'\0' * 8,
        b'\xff' * 100,
        struct.pack('<Q', 10**18) + b'{}',
        b'PK\x03\x04' * 9,
        struct.pack('<Q', 2) + b'[]',
        struct.pack('<Q', 4) + b'null',
        struct.pack('<Q', 200_000) + b'[' * 200_000,
        struct.pack('<Q', 3) + b'\xff\xfe\xfd',
    ],
    ids=lambda data: data[:12].hex(),
)
def test_what_is_no_safetensors_file_is_called_so(data, tmp_path):
    path = tmp_path / 'model'
    path.write_bytes(data)
    with pytest.raises(Problem, match='not a safetensors file'):
        load_checkpoint(path)
    assert path.read_bytes() == data


def test_a_safetensors_file_of_others_is_called_so(tmp_path):
    path = tmp_path / 'model'
    header = json.dumps(
        {'w': {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}}
    ).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + b'\0' * 4)
    refused(run('--load', path), 'a safetensors file, but not one of microgpt')


def test_four_gigabytes_of_something_else_are_refused_without_being_read(tmp_path):
    path = tmp_path / 'model'
    with open(path, 'wb') as file:
        file.truncate(4 * 2**30)  # a hole: it takes no room on the disk

    import resource

    def little_memory():
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))

    refused(run('--load', path, preexec_fn=little_memory), 'not a safetensors file')


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -float('inf'), 1e300])
def test_parameters_that_are_no_numbers_are_refused(number, checkpoint):
    header, doubles = parts(checkpoint)
    write_checkpoint(
        checkpoint, header, doubles[:80] + struct.pack('<d', number) + doubles[88:]
    )
    with pytest.raises(Problem, match='beyond reason'):
        load_checkpoint(checkpoint)


def test_a_message_stays_one_line_whatever_the_file_says(checkpoint):
    header, doubles = parts(checkpoint)
    header['new\nline\x1b[31m'] = header['wte']
    write_checkpoint(checkpoint, header, doubles)
    result = run('--load', checkpoint)
    refused(result, 'tensor')
    assert '\x1b' not in result.stderr and result.stderr.count('\n') == 1


def test_a_mistake_in_the_program_is_not_reported_as_damage(checkpoint, monkeypatch):
    monkeypatch.delattr(microgpt, 'fill_run')
    with pytest.raises(NameError):
        load_checkpoint(checkpoint)


# ---- only our own files are replaced -----------------------------------------


def test_a_file_that_is_not_ours_is_left_alone(tmp_path):
    data, notes = tmp_path / 'data', tmp_path / 'notes'
    shutil.copy(SMALL, data)
    notes.write_text('my notes\n')
    fifo = tmp_path / 'fifo'
    os.mkfifo(fifo)
    arguments = ['--data', data, *SIZES, '--steps', 1]
    refused(run(*arguments, '--save', notes), 'notes', 'not a checkpoint of microgpt')
    refused(run(*arguments, '--log', notes), 'notes', 'not a log of microgpt')
    for option in ('--log', '--save'):
        refused(run(*arguments, option, data), 'the same file twice')
        refused(run(*arguments, option, fifo), 'fifo', 'not a file')
    assert notes.read_text() == 'my notes\n' and data.read_bytes() == SMALL.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ['data', 'fifo', 'notes']


def test_saving_leaves_the_neighbours_and_the_permissions_as_they_are(checkpoint):
    neighbour = checkpoint.with_name(checkpoint.name + '.new')
    neighbour.write_text('mine')
    checkpoint.chmod(0o640)
    result = run('--load', checkpoint, '--steps', 14, '--save', checkpoint)
    assert result.returncode == 0
    assert load_checkpoint(checkpoint).adam.step == 14
    assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o640
    assert neighbour.read_text() == 'mine'
    assert sorted(os.listdir(checkpoint.parent)) == [checkpoint.name, neighbour.name]


def test_a_new_file_has_the_permissions_that_the_user_gives_to_new_files(tmp_path):
    path = tmp_path / 'model'
    run(*TINY, '--save', path, preexec_fn=lambda: os.umask(0o027))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_the_log_of_another_run_is_not_touched(tmp_path):
    log, path = tmp_path / 'log', tmp_path / 'model'
    run(*TINY, '--log', log, '--save', path, '--samples', 0)
    before = log.read_text()
    refused(run(*TINY, '--log', log), 'not the log')
    other = tmp_path / 'other'
    run(*TINY, '--steps', 20, '--save', other, '--samples', 0)
    refused(run('--load', other, '--steps', 30, '--log', log), 'not the log')
    assert log.read_text() == before


@pytest.mark.parametrize(
    'rows', ['13,2.5,0.01\n', '1,2.5,0.01\n12,2.5,0.01\n', 'my notes']
)
def test_a_log_that_does_not_fit_is_not_touched(rows, checkpoint):
    log = checkpoint.with_name('log')
    log.write_text('step,loss,learning_rate\n' + rows)
    if rows.startswith('13'):  # of this run, from the checkpoint on: it can be
        run('--load', checkpoint, '--steps', 13, '--log', log, '--samples', 0)
        assert log.read_text().count('\n') == 2
        return
    refused(run('--load', checkpoint, '--steps', 13, '--log', log), 'log')
    refused(run(*TINY, '--log', log), 'log')
    assert log.read_text().endswith(rows)


def test_rows_of_a_log_that_are_made_again_are_announced(tmp_path):
    log, path = tmp_path / 'log', tmp_path / 'model'
    run(*TINY, '--log', log, '--save', path, '--samples', 0)
    with open(log, 'a') as file:
        file.write('13,2.5,0.01\n14,2.5,0.01\n15,2')
    result = run('--load', path, '--steps', 14, '--log', log, '--samples', 0)
    assert '2 rows after step 12 are dropped' in result.stderr
    assert [row.split(',')[0] for row in log.read_text().split()[1:]] == [
        str(i) for i in range(1, 15)
    ]


def test_a_model_that_cannot_be_saved_where_it_should_be_is_saved_elsewhere(tmp_path):
    folder, rescue = tmp_path / 'folder', tmp_path / 'rescue'
    folder.mkdir()
    rescue.mkdir()
    process = start(
        '--data', SMALL, *SIZES, '--steps', 500, '--samples', 0,
        '--save', folder / 'model', env=env(TMPDIR=str(rescue)),
    )  # fmt: skip
    wait_for(process, 'step ')
    with paused(process):
        folder.rmdir()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1 and 'not saved' in stderr
    saved = re.search('saved as (.*)', stderr)[1]
    assert saved.startswith(str(rescue)) and load_checkpoint(saved).adam.step == 500


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / 'model'
    process = start('--data', SMALL, *SIZES, '--steps', 500, '--save', path)
    wait_for(process, 'step ')
    with paused(process):
        path.write_text('precious')
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1 and 'another file is there now' in stderr
    assert path.read_text() == 'precious'


def test_what_is_saved_can_be_loaded_whatever_its_path_and_its_size(tmp_path):
    odd = os.fsencode(tmp_path) + b'/d\xff.txt'
    shutil.copy(SMALL, odd)
    refused(
        run('--data', os.fsdecode(odd), *SIZES, '--save', tmp_path / 'model'),
        'not text',
    )
    endless = ['--data', SMALL, *SIZES, '--epochs', 10**9, '--save', tmp_path / 'model']
    refused(run(*endless), '--steps must be')
    refused(run(*TINY, '--save', os.fsdecode(b'm\xff' * 200)), 'too long')
    assert not (tmp_path / 'model').exists()


def test_a_full_disk_keeps_the_old_checkpoint_and_the_names(checkpoint):
    before = checkpoint.read_bytes()

    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    saving = ['--save', checkpoint, '--save-every', 3, '--samples', 5]
    result = run('--load', checkpoint, '--steps', 20, *saving, preexec_fn=small_files)
    assert result.returncode == 1 and result.stdout.count('\n') == 5
    assert (
        result.stderr.count(': not saved: ') >= 3 and 'Traceback' not in result.stderr
    )
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == [checkpoint.name]


def test_a_log_that_cannot_be_written_does_not_stop_the_training(tmp_path):
    log, path = tmp_path / 'log', tmp_path / 'model'

    import resource

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    arguments = ['--data', SMALL, *SIZES, '--steps', 900, '--log', log, '--save', path]
    result = run(*arguments, preexec_fn=small_files)
    assert result.returncode == 1 and 'no more rows' in result.stderr
    assert load_checkpoint(path).adam.step == 900
    assert result.stdout.count('\n') == 20


def test_the_old_checkpoint_is_whole_until_the_new_one_is(checkpoint, monkeypatch):
    before, seen = state(checkpoint), []
    monkeypatch.setattr(os, 'fsync', lambda handle: seen.append(state(checkpoint)))
    changed = load_checkpoint(checkpoint)
    changed.adam.step += 1
    microgpt.save_checkpoint(checkpoint, changed)
    assert seen == [before] and state(checkpoint) != before
