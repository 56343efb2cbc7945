"""Files: exact, whole whatever happens, and nothing is taken on trust."""

import hashlib
import json
import math
import os
import random
import re
import stat
import struct
from pathlib import Path

import pytest
from conftest import SIZES, SMALL, TESTS, TINY, refused, run

import microgpt
from microgpt import Problem, load_checkpoint, numbers

OLD = {  # files of earlier versions, and the names that these printed from them
    'checkpoint_of_2026_11.bin': 'oysmig quprhb iijndg ssblok fkyotx',
    'checkpoint_of_2026_11_26.bin': 'bpyf mwyzai ozciwd kiszet twpyik',
}


def parts(path):
    """The header, as a dict, and the numbers of a checkpoint."""
    data = path.read_bytes()
    start = 8 + struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:start]), data[start:]


def write_checkpoint(path, header, doubles):
    """A checkpoint with this header and these numbers, and a hash that is right."""
    header['__metadata__']['sha256'] = '0' * 64
    text = json.dumps(header).encode()
    data = struct.pack('<Q', len(text)) + text + doubles
    digest = hashlib.sha256(data).hexdigest()
    path.write_bytes(data.replace(b'0' * 64, digest.encode(), 1))


KINDS = {
    'plain': '--steps 14',
    'batches': '--steps 14 --batch-size 3 --grad-clip 0.5 --decay cosine --seed 5',
    'workers': '--steps 14 --batch-size 5 --workers 2',
    'epochs': '--epochs 2 --batch-size 4',  # 27 of 30 documents twice, by 4
}


@pytest.mark.parametrize('kind', KINDS)
def test_a_run_in_pieces_is_exactly_the_run_in_one(kind, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    settings = ['--data', SMALL, *SIZES, *KINDS[kind].split()]
    process = run if kind == 'workers' else cli  # only a program can start workers
    straight = process(*settings, '--save', 'straight', '--log', 'straight.csv')
    assert straight.stdout.count('\n') == 20 and 'without' not in straight.stderr
    update, stops = microgpt.Adam.update, [1, 5, 9]

    def greedy_update(adam, rate):
        if adam.step in stops:
            raise MemoryError
        update(adam, rate)

    monkeypatch.setattr(microgpt.Adam, 'update', greedy_update)
    while stops:
        result = cli(*settings, '--save', 'cut', '--log', 'cut.csv')
        refused(result, 'out of memory', status=1)
        assert load_checkpoint('cut').step == stops.pop(0) and not microgpt.Value.tape
        settings = ['--load', 'cut']
    result = cli(*settings, '--save', 'cut', '--log', 'cut.csv')
    assert result.stdout == straight.stdout and 'step 14 / 14' in result.stderr
    assert Path('cut').read_bytes() == Path('straight').read_bytes()
    assert Path('cut.csv').read_text() == Path('straight.csv').read_text()


def test_a_loaded_model_writes_the_names_that_its_training_printed(tmp_path, cli):
    path = tmp_path / ('m' * 255)  # no name can be longer
    trained = cli(*TINY, '--save', path, '--temperature', 2, '--novel')
    assert f'saved as {path}; look inside: --load {path} --inspect ' in trained.stderr
    seeds = [], ['--seed', 1], ['--seed', 2], ['--seed', 1]
    names = [cli('--load', path, *seed).stdout for seed in seeds]
    assert names[0] == trained.stdout and names[1] == names[3]
    assert len(set(names)) == 3  # another seed, other names
    assert 'new' not in cli('--load', path, '--no-novel').stderr  # needs no documents


@pytest.mark.parametrize('name', OLD)
def test_checkpoints_of_earlier_versions_load_and_write_the_same_names(name, cli):
    result = cli('--load', TESTS / 'reference' / name, '--samples', 5, '--no-novel')
    assert result.stdout.split() == OLD[name].split()


def test_documents_that_have_changed_are_noticed_now_and_later(tmp_path, cli):
    path, data = tmp_path / 'model', tmp_path / 'data'
    data.write_bytes(SMALL.read_bytes())
    cli('--data', data, *SIZES, '--save', path, '--samples', 0, '--steps', 3)
    data.write_text(data.read_text() + 'zed\n')
    go_on = ['--load', path, '--save', path, '--steps']
    refused(cli(*go_on, 4), 'not the documents', '--data')
    for options in ([4, '--data', data], [5]):  # by now, only the checkpoint knows
        result = cli(*go_on, *options)
        assert 'so no held-out loss' in result.stderr and result.returncode == 0
        assert 'nats per token' not in result.stderr


def test_a_checkpoint_is_a_safetensors_file(checkpoint):
    header, doubles = parts(checkpoint)
    assert all(isinstance(value, str) for value in header.pop('__metadata__').values())
    saved = load_checkpoint(checkpoint)
    named = microgpt.tensors(saved.model)
    assert [name for name in header if not name.startswith('adam.')] == list(named)
    end = 0
    for name, entry in header.items():  # in the order of the file, without a gap
        start, end = end, end + 8 * math.prod(entry['shape'])
        assert entry['dtype'] == 'F64' and entry['data_offsets'] == [start, end]
        if name in named:
            found = struct.unpack(f'<{(end - start) // 8}d', doubles[start:end])
            assert list(found) == numbers(microgpt.parameters(named[name]))
    saved.options.prompt = 'a'  # for a header of another length
    for content in (checkpoint.read_bytes(), microgpt.pack(saved)):
        assert (len(content) - end) % 8 == 0 and end == len(doubles)


def test_damage_anywhere_is_refused(checkpoint):
    data, rng = checkpoint.read_bytes(), random.Random(1)
    for _ in range(100):
        place = rng.randrange(len(data))
        flipped = bytes([data[place] ^ 1 << rng.randrange(8)])
        damaged = data[:place] + flipped + data[place + 1 :]
        checkpoint.write_bytes(rng.choice([damaged, data[:place]]))
        with pytest.raises(Problem, match=re.escape(str(checkpoint))):
            load_checkpoint(checkpoint)


ODD = {  # what somebody could write into a part of a file, with a hash that is right
    'a wrong dtype': ('wte', 'dtype', 'F32'),
    'a wrong shape': ('wte', 'shape', [4, 27]),
    'other offsets': ('wte', 'data_offsets', [0, 8]),
    'an extra tensor': ('more', 'dtype', 'F64'),
    'an unknown version': ('__metadata__', 'version', 'microgpt 99'),
    'letters in disorder': ('__metadata__', 'vocabulary', 'bacdefghijklmnopqrstuvwxyz'),
    'a line break': ('__metadata__', 'vocabulary', '\nbcdefghijklmnopqrstuvwxyz'),
    'a negative step': ('__metadata__', 'step', '-1'),
    'a short random state': ('__metadata__', 'random', '[3, [1, 2], null]'),
    'settings that nest deeply': ('__metadata__', 'settings', '[' * 100_000),
    'a setting of this run only': ('settings', 'save', '/tmp/other'),
    'a setting of another kind': ('settings', 'n_layer', '1'),
    'a size of zero': ('settings', 'n_embd', 0),
    'hundreds of thousands of layers': ('settings', 'n_layer', 500_000),
    'heads that do not divide': ('settings', 'n_head', 3),
    'a decay that is unknown': ('settings', 'decay', 'constant'),
    'data with a NUL': ('settings', 'data', 'a\0b'),
    'data that no path can have': ('settings', 'data', '\ud800'),
    'no number in place of one': ('numbers', -8, math.nan),
    'a number beyond reason': ('numbers', -8, 1e300),
    'a negative mean of squares': ('numbers', -8, -1.0),
}


@pytest.mark.parametrize('name', ODD)
def test_odd_contents_of_a_checkpoint_are_refused(name, tmp_path, cli):
    path, (part, key, value) = tmp_path / 'model', ODD[name]
    header, doubles = parts(TESTS / 'reference' / 'checkpoint_of_2026_11_26.bin')
    write_checkpoint(path, header, doubles)
    assert load_checkpoint(path).step == 12  # so far, all is well
    if part == 'settings':
        settings = json.loads(header['__metadata__']['settings'])
        header['__metadata__']['settings'] = json.dumps({**settings, key: value})
    elif part == 'numbers':
        doubles = doubles[:key] + struct.pack('<d', value)
    else:
        header.setdefault(part, {})[key] = value
    write_checkpoint(path, header, doubles)
    refused(cli('--load', path), str(path))


COMMANDS = {  # beside a model, a link to it, and other files: status, what is said
    '--load model': (0, '^vocab size: 27\nnum params: 432\n$'),
    '--load model --steps 9': (0, 'model is at step 12 already: nothing to train'),
    '--load model --steps 21': (0, 'without --save, the result will be lost\n'),
    '--load model --steps 20 --save model': (0, 'rate falls until step 20\n'),
    '--load model --steps 13 --save link': (0, 'from step 12 on'),
    '--load copy --save model': (2, 'already: add --load model to go on with it'),
    '--save model': (2, 'already: add --load model to go on with it'),
    '--save empty': (2, 'empty: is there already'),
    '--log text': (2, 'text: not a log of microgpt'),
    '--load text': (2, 'text: not a checkpoint of microgpt 1'),
    '--load model --data text': (2, "text: 'Zë' is not in the vocabulary .* a to z"),
    '--load model --epochs 9 --batch-size 2': (2, '--batch-size is fixed at 1 in'),
    '--load model --n-layer 2': (2, '--n-layer is fixed at 1 in model'),
    '--load model --val-fraction 0': (2, '--val-fraction is fixed at 0.1 in model'),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_only_the_file_that_was_loaded_changes(command, checkpoint, monkeypatch, cli):
    status, said = COMMANDS[command]
    monkeypatch.chdir(checkpoint.parent)
    content = checkpoint.read_bytes()
    files = {'model': content, 'copy': content, 'empty': b'', 'text': b'Zo\xc3\xab\n'}
    for name in files:
        Path(name).write_bytes(files[name])
    os.symlink('model', 'link')
    result = cli(*([] if '--load' in command else TINY), *command.split())
    assert result.returncode == status and re.search(said, result.stderr)
    assert status == 0 or 'mean loss' not in result.stderr  # it is said in time
    changed = [name for name in files if Path(name).read_bytes() != files[name]]
    assert changed == (['model'] if 'saved as' in result.stderr else [])


def test_a_file_is_replaced_in_one_step(checkpoint, monkeypatch, cli):
    neighbour = checkpoint.with_name('model.new')
    umask = os.umask(0o027)
    cli(*TINY, '--save', neighbour)
    os.umask(umask)
    checkpoint.chmod(0o600)
    old, replace, calls = checkpoint.read_bytes(), os.replace, []

    def checked_replace(source, target):
        assert checkpoint.read_bytes() == old and load_checkpoint(source).step == 14
        replace(source, target)
        calls.append('replace')

    monkeypatch.setattr(os, 'fsync', lambda handle: calls.append('fsync'))
    monkeypatch.setattr(os, 'replace', checked_replace)
    cli('--load', checkpoint, '--steps', 14, '--save', checkpoint)
    assert calls == ['fsync', 'replace'] and load_checkpoint(checkpoint).step == 14
    assert set(checkpoint.parent.iterdir()) == {checkpoint, neighbour}
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (checkpoint, neighbour)]
    assert modes == [0o600, 0o640]  # that of the old file, and that of any new one


def test_a_log_goes_on_and_says_what_was_there(checkpoint, cli):
    log = checkpoint.with_name('log')
    log.write_text('step,loss,learning_rate\n11,2.5,0.1\n12,2.5,0.1\n')
    go_on = ['--load', checkpoint, '--steps', 14, '--log', log]
    assert str(log) not in cli(*go_on).stderr
    assert re.findall(r'(?m)^\w+', log.read_text()) == ['step', '11', '12', '13', '14']
    assert f"{log}: after '14," in cli(*go_on).stderr  # which does not fit
    log.write_text('step,loss,learning_rate\n12,2.')  # cut off by a full disk
    cli(*go_on)
    assert re.findall(r'(?m)^\w+', log.read_text()) == ['step', '12', '13', '14']
