"""Files: exact, whole whatever happens, and nothing is taken on trust."""

import hashlib
import json
import os
import random
import shutil
import stat
import struct

import pytest
from conftest import SIZES, SMALL, TESTS, TINY, refused, run

import microgpt
from microgpt import Problem, load_checkpoint, numbers


def state(path):
    """All that a checkpoint consists of, in a form that can be compared."""
    run = load_checkpoint(path)
    everything = [numbers(run.params), run.adam.m, run.adam.v, run.adam.step, run.step]
    return [vars(run.options), run.vocab, run.digest, run.rng.getstate(), *everything]


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


KINDS = {
    'plain': [],
    'batches': '--batch-size 3 --grad-clip 0.5 --decay cosine --seed 5'.split(),
    'workers': '--batch-size 4 --workers 2'.split(),
    'epochs': '--batch-size 2 --epochs 1'.split(),
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_in_pieces_is_bit_for_bit_the_run_in_one(kind, tmp_path, cli, monkeypatch):
    steps = [] if kind == 'epochs' else ['--steps', 14]
    settings = ['--data', SMALL, *SIZES, *steps, *KINDS[kind]]
    straight, log = tmp_path / 'straight', tmp_path / 'log'
    process = run if kind == 'workers' else cli  # only a program can start workers
    names = process(*settings, '--save', straight, '--log', log).stdout
    cut, cut_log = tmp_path / 'cut', tmp_path / 'cut log'
    original, stops = microgpt.Progress.note, {1, 5, 9}

    def note(progress, *args):
        original(progress, *args)
        if progress.run.step in stops:
            raise MemoryError

    monkeypatch.setattr(microgpt.Progress, 'note', note)
    for stop in sorted(stops):
        assert cli(*settings, '--save', cut, '--log', cut_log).returncode == 1
        assert load_checkpoint(cut).step == stop
        settings = ['--load', cut]
    result = process(*settings, '--save', cut, '--log', cut_log)
    assert result.stdout == names and names.count('\n') == 20
    assert state(cut) == state(straight) and cut_log.read_text() == log.read_text()


def test_a_loaded_model_writes_the_names_that_its_training_printed(tmp_path, cli):
    path = tmp_path / 'model'
    trained = cli(*TINY, '--save', path, '--samples', 30, '--temperature', 1.5)
    assert f'saved as {path}; look inside: --load {path} --inspect zoe' in trained.stderr
    assert cli('--load', path).stdout == trained.stdout
    names = [
        cli('--load', path, '--temperature', 2, *seed).stdout
        for seed in ((), ('--seed', 1), ('--seed', 2), ('--seed', 1))
    ]
    assert names[1] == names[3] and len(set(names)) == 3  # another seed, other names


def test_more_steps_go_on_and_fewer_only_sample(checkpoint, cli):
    more = cli('--load', checkpoint, '--steps', 20, '--save', checkpoint)
    assert 'step 13 / 20' in more.stderr and 'step 20 / 20' in more.stderr
    line = 'from step 12 on; the rate falls until step 20'
    assert line in more.stderr
    saved = load_checkpoint(checkpoint)
    assert saved.step == saved.adam.step == saved.options.steps == 20
    fewer = cli('--load', checkpoint, '--steps', 0, '--samples', 1)
    assert 'step ' not in fewer.stderr and fewer.stdout.count('\n') == 1
    lost = cli('--load', checkpoint, '--steps', 21)
    assert 'without --save, the result will be lost' in lost.stderr


def test_what_a_checkpoint_says_can_be_undone_but_not_its_sizes(tmp_path, cli):
    path = tmp_path / 'model'
    cli(*TINY, '--save', path, '--novel', '--samples', 3)
    assert load_checkpoint(path).options.novel is True
    assert 'new' not in cli('--load', path, '--no-novel').stderr  # needs no documents
    refused(cli('--load', path, '--n-layer', 2), f'--n-layer is 1 for good in {path}')
    refused(cli('--load', path, '--val-fraction', 0), '--val-fraction is 0.1 for good')


def test_documents_that_have_changed_are_noticed_now_and_later(tmp_path, cli):
    path, data = tmp_path / 'model', tmp_path / 'data'
    shutil.copy(SMALL, data)
    arguments = ['--data', data, *SIZES, '--save', path]
    assert 'held-out loss' in cli(*arguments, '--steps', 3).stderr
    data.write_text(data.read_text() + 'zed\n')
    go_on = ['--load', path, '--save', path, '--samples', 0]
    refused(cli(*go_on, '--steps', 4), 'not the documents', '--data')
    for steps in (4, 5):  # in the second of them, only the checkpoint knows
        other = ['--data', data] if steps == 4 else []
        result = cli(*go_on, '--steps', steps, *other)
        assert 'so no held-out loss' in result.stderr and result.returncode == 0
        assert 'held-out loss 2' not in result.stderr
    data.write_text('Ünknown\n')
    refused(cli(*go_on, '--steps', 6), "'Ü' is not in the vocabulary", 'a to z')
    data.unlink()
    refused(cli(*go_on, '--steps', 6), 'data', 'No such file')


# ---- the format --------------------------------------------------------------


def test_a_checkpoint_is_a_safetensors_file(checkpoint):
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
    assert end == len(doubles) and (len(checkpoint.read_bytes()) - end) % 8 == 0
    first, last = header['layer0.mlp_fc1']['data_offsets']
    stored = struct.unpack(f'<{(last - first) // 8}d', doubles[first:last])
    assert list(stored) == numbers(microgpt.parameters(named['layer0.mlp_fc1']))
    assert struct.unpack('<d', doubles[-8:])[0] == saved.adam.v[-1]


OLD = {  # files of earlier versions, and the names that these printed from them
    'checkpoint_of_2026_11.bin': 'oysmig quprhb iijndg ssblok fkyotx',
    'checkpoint_of_2026_11_26.bin': 'bpyf mwyzai ozciwd kiszet twpyik',
}


@pytest.mark.parametrize('name', OLD)
def test_checkpoints_of_earlier_versions_load_and_write_the_same_names(name, cli):
    path = TESTS / 'reference' / name
    result = cli('--load', path, '--samples', 5, '--no-novel')
    assert result.stdout.split() == OLD[name].split()
    assert load_checkpoint(path).step == 12


def test_damage_anywhere_is_refused_or_changes_nothing(checkpoint):
    data, before, rng = checkpoint.read_bytes(), state(checkpoint), random.Random(1)
    for _ in range(300):
        place = rng.choice([rng.randrange(len(data)), rng.randrange(9000)])
        flipped = bytes([data[place] ^ 1 << rng.randrange(8)])
        kinds = [data[:place] + flipped + data[place + 1 :], data[:place]]
        kinds.append(data[:place] + rng.randbytes(9) + data[place + rng.randrange(9) :])
        checkpoint.write_bytes(new := rng.choice(kinds))
        try:
            assert state(checkpoint) == before and new == data
        except Problem as problem:
            assert str(checkpoint) in str(problem)


def metadata(**changes):
    return lambda header: header['__metadata__'].update(changes)


def settings(**changes):
    def change(header):
        old = json.loads(header['__metadata__']['settings'])
        header['__metadata__']['settings'] = json.dumps({**old, **changes})

    return change


ODD = {  # what somebody could write into a file, with a hash that is right
    'a wrong dtype': lambda h: h['wte'].update(dtype='F32'),
    'a wrong shape': lambda h: h['wte'].update(shape=[4, 27]),
    'other offsets': lambda h: h['wpe'].update(data_offsets=h['wte']['data_offsets']),
    'a missing tensor': lambda h: h.pop('lm_head'),
    'a missing moment': lambda h: h.pop('adam.v.wte'),
    'an extra tensor': lambda h: h.update(more=h['wte']),
    'an entry of another kind': lambda h: h.update(wte=[1]),
    'an unknown version': metadata(version='microgpt 99'),
    'a vocabulary out of order': metadata(vocabulary='ba'),
    'a vocabulary of another kind': metadata(vocabulary=[1]),
    'a vocabulary with a line break': metadata(vocabulary='\nabc'),
    'a negative step': metadata(step='-1'),
    'a step of another kind': metadata(step='x'),
    'a random state that is too short': metadata(random='[3, [1, 2], null]'),
    'a random state of texts': metadata(random='["a", "b"]'),
    'settings of another kind': metadata(settings='7'),
    'settings that nest deeply': metadata(settings='[' * 100_000),
    'a setting that is no setting': settings(load='/etc/passwd'),
    'a setting of this run only': settings(save='/tmp/other'),
    'a setting of another kind': settings(n_layer='1'),
    'no number at all': settings(steps=None),
    'a size of zero': settings(n_embd=0),
    'a gigantic size': settings(n_embd=10**12),
    'a very large size': settings(n_embd=4000),
    'hundreds of thousands of layers': settings(n_layer=500_000),
    'heads that do not divide': settings(n_head=3),
    'a decay that is unknown': settings(decay='constant'),
    'data with a NUL': settings(data='a\0b'),
    'a learning rate that is none': settings(learning_rate=float('nan')),
}


@pytest.mark.parametrize('name', ODD)
def test_odd_contents_of_a_checkpoint_are_refused_in_one_line(name, checkpoint, cli):
    header, doubles = parts(checkpoint)
    ODD[name](header)
    write_checkpoint(checkpoint, header, doubles)
    result = cli('--load', checkpoint)
    refused(result, str(checkpoint))
    assert result.stderr.count('\n') == 1


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -1e300, -1.0])
def test_numbers_beyond_reason_are_refused(number, checkpoint, cli):
    header, doubles = parts(checkpoint)
    write_checkpoint(checkpoint, header, doubles[:-8] + struct.pack('<d', number))
    refused(cli('--load', checkpoint), 'cannot be loaded')


OF_OTHERS = {
    'nothing': b'',
    'zeros': b'\0' * 300,
    'a zip file': b'PK\x03\x04' * 99,
    'a safetensors file': b'\x18' + b'\0' * 7 + b'{"w": {"dtype": "F32"}}',
}


@pytest.mark.parametrize('name', OF_OTHERS)
def test_the_file_of_somebody_else_is_called_so_and_left_alone(name, tmp_path, cli):
    path = tmp_path / 'file'
    path.write_bytes(OF_OTHERS[name])
    refused(cli('--load', path), f'{path}: not a checkpoint of microgpt 1')
    refused(cli(*TINY, '--save', path), f'{path}: is there already')
    if name != 'nothing':
        refused(cli(*TINY, '--log', path), 'not a log of microgpt')
    assert path.read_bytes() == OF_OTHERS[name]


# ---- only what is ours is replaced -------------------------------------------


def test_save_replaces_only_the_file_that_was_loaded(checkpoint, cli):
    before = checkpoint.read_bytes()
    result = cli(*TINY, '--save', checkpoint)  # the same command again
    advice = f'is there already: add --load {checkpoint} to go on with it'
    refused(result, advice)
    assert 'step' not in result.stderr  # before training
    other = checkpoint.with_name('other')
    shutil.copy(checkpoint, other)
    refused(cli('--load', other, '--save', checkpoint), advice)
    assert checkpoint.read_bytes() == before
    assert cli('--load', checkpoint, '--save', checkpoint).returncode == 0
    link = checkpoint.with_name('link')
    link.symlink_to(checkpoint)
    go_on = cli('--load', link, '--save', checkpoint, '--steps', 13)
    assert go_on.returncode == 0 and load_checkpoint(link).step == 13


def test_of_two_runs_with_one_new_file_none_is_lost(tmp_path, cli, monkeypatch):
    path = tmp_path / 'model.bin'
    original = microgpt.Progress.note

    def note(progress, *args):
        original(progress, *args)
        if progress.run.step == 12:  # meanwhile, the other run has been faster
            assert run(*TINY, '--seed', 1, '--save', path).returncode == 0

    monkeypatch.setattr(microgpt.Progress, 'note', note)
    result = cli(*TINY, '--seed', 2, '--save', path)
    saved = tmp_path / result.stderr.split('saved as ')[1].split(';')[0]
    assert load_checkpoint(path).options.seed == 1
    assert load_checkpoint(saved).options.seed == 2 and saved != path


def test_saving_leaves_the_neighbours_and_the_permissions_as_they_are(checkpoint, cli):
    neighbour = checkpoint.with_name(checkpoint.name + '.new')
    neighbour.write_text('mine')
    checkpoint.chmod(0o640)
    cli('--load', checkpoint, '--steps', 14, '--save', checkpoint)
    assert load_checkpoint(checkpoint).step == 14
    assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o640
    assert neighbour.read_text() == 'mine'
    assert sorted(os.listdir(checkpoint.parent)) == [checkpoint.name, neighbour.name]
    umask = os.umask(0o027)
    cli(*TINY, '--save', checkpoint.with_name('new'))
    os.umask(umask)
    assert stat.S_IMODE(checkpoint.with_name('new').stat().st_mode) == 0o640


def test_the_old_checkpoint_is_whole_until_the_new_one_is(checkpoint, monkeypatch):
    before, seen = state(checkpoint), []
    changed = load_checkpoint(checkpoint)
    monkeypatch.setattr(os, 'fsync', lambda handle: seen.append(state(checkpoint)))
    changed.step += 1
    microgpt.replace_file(checkpoint, microgpt.pack(changed))
    assert seen == [before] and state(checkpoint) != before


# ---- the log -----------------------------------------------------------------


def test_a_log_goes_on_and_says_what_was_there(checkpoint, cli):
    log = checkpoint.with_name('log')
    header = 'step,loss,learning_rate\n'
    log.write_text(header + '11,2.5,0.1\n12,2.5,0.1\n')
    go_on = ['--load', checkpoint, '--steps', 14, '--samples', 0, '--log', log]
    assert str(log) not in cli(*go_on).stderr
    steps = [row.split(',')[0] for row in log.read_text().split()]
    assert steps == ['step', '11', '12', '13', '14']
    assert f"{log}: after '14," in cli(*go_on).stderr  # which does not fit
    log.write_text(header + '12,2.')  # cut off by a full disk
    cli(*go_on)
    assert [row[:3] for row in log.read_text().split()[1:]] == ['12,', '13,', '14,']
