"""Checkpoints: exact, whole whatever happens, readable by others, and nothing else is taken for one."""
import hashlib
import json
import os
import random
import resource
import signal
import struct
import time

import pytest
from conftest import SMALL, TINY, refused, run, start

import microgpt
from microgpt import Problem, load_checkpoint

FULL = [*TINY, '--seed', '5', '--batch-size', '2', '--grad-clip', '0.5', '--decay', 'cosine']


def parts(data):
    """The header, as a dict, and the numbers of a checkpoint's bytes."""
    length = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8 + length]), data[8 + length:]


def whole(header, numbers):
    """The bytes of a checkpoint with this header and a hash that is right."""
    header['__metadata__'] = {**header['__metadata__'], 'sha256': '0' * 64}
    text = json.dumps(header).encode()
    data = struct.pack('<Q', len(text)) + text + numbers
    return data.replace(b'0' * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def state(path):
    """All that a loaded checkpoint consists of, in comparable form."""
    settings, chars, model, adam, rng = load_checkpoint(path)
    return (settings, chars, microgpt.plain(model), list(adam.m), list(adam.v), adam.step, rng.getstate())


# ---- going on exactly --------------------------------------------------------------------------

def test_a_trained_model_gives_the_names_that_its_training_printed(tmp_path):
    path = tmp_path / 'model'
    trained = run(*FULL, '--save', path, '--samples', 30, '--temperature', 1.5)
    loaded = run('--load', path)
    assert trained.stdout == loaded.stdout and trained.stdout.count('\n') == 30
    held_out = [line for line in trained.stderr.splitlines() if line.startswith('held-out')][0]
    assert held_out.split(',')[0] in loaded.stderr


def test_an_explicit_seed_draws_other_names_from_the_same_model(checkpoint):
    names = [run('--load', checkpoint, '--samples', 20, '--temperature', 2, *seed).stdout
             for seed in ((), ('--seed', 1), ('--seed', 2), ('--seed', 1))]
    assert names[1] == names[3] and len(set(names)) == 3


def test_training_that_was_interrupted_goes_on_bit_for_bit(tmp_path):
    straight, log = tmp_path / 'straight', tmp_path / 'log'
    names = run(*FULL, '--save', straight, '--log', log).stdout
    for stop in (1, 5, 11):
        path, new_log = tmp_path / f'stopped {stop}', tmp_path / f'log {stop}'
        run(*FULL, '--save', path, '--log', new_log)    # a first run; now as if it had been cut off
        settings, chars, model, adam, rng = load_checkpoint(path)
        cut = start_over(settings, chars, tmp_path / f'cut {stop}', stop)
        assert run('--load', cut, '--save', path, '--log', new_log).stdout == names
        assert state(path) == state(straight)
        assert new_log.read_text() == log.read_text()


def start_over(settings, chars, path, stop):
    """A checkpoint of the run with these settings after `stop` of its steps, made by Part I."""
    config = microgpt.config_of(settings)
    rng = random.Random(settings['seed'])
    docs = microgpt.load_docs(settings['data'])
    rng.shuffle(docs)
    docs = docs[:len(docs) - int(len(docs) * settings['val_fraction'])]
    model = microgpt.new_model(microgpt.shapes(config, len(chars) + 1), lambda: rng.gauss(0, 0.08))
    adam = microgpt.Adam(microgpt.parameters(model))

    def gradients_at(step):
        loss, gradients = microgpt.mean([microgpt.document_gradients(
            model, config, microgpt.encode(docs[i % len(docs)], chars)) for i in (2 * step, 2 * step + 1)])
        norm = sum(g * g for g in gradients) ** 0.5
        return loss, [g * 0.5 / norm for g in gradients] if norm > 0.5 else gradients
    steps = microgpt.train(adam, gradients_at, settings['steps'], settings['learning_rate'],
                           microgpt.DECAYS[settings['decay']])
    for step, _ in steps:
        if step == stop:
            break
    microgpt.save_checkpoint(path, settings, chars, adam, rng)
    return path


def test_ctrl_c_saves_and_the_run_goes_on_from_there(tmp_path):
    straight, path = tmp_path / 'straight', tmp_path / 'model'
    settings = [*TINY[:-2], '--steps', 800]
    names = run(*settings, '--save', straight).stdout
    process = start(*settings, '--save', path)
    while not process.stderr.readline().startswith('step 100'):
        pass
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == 130 and stdout == ''
    assert 'microgpt: stopped by Ctrl-C after step' in stderr.splitlines()[-1]
    assert 100 <= load_checkpoint(path)[3].step < 800
    assert run('--load', path, '--save', path).stdout == names
    assert state(path) == state(straight)


def test_more_steps_go_on_and_fewer_only_sample(checkpoint):
    more = run('--load', checkpoint, '--steps', 20, '--save', checkpoint, '--samples', 1)
    assert 'step 13 / 20' in more.stderr and 'step 20 / 20' in more.stderr
    assert state(checkpoint)[5] == 20 and state(checkpoint)[0]['steps'] == 20
    fewer = run('--load', checkpoint, '--steps', 0, '--samples', 1)
    assert 'step ' not in fewer.stderr and 'held-out loss' in fewer.stderr


def test_sampling_needs_no_data_but_training_does(tmp_path):
    data, path = tmp_path / 'data.txt', tmp_path / 'model'
    data.write_text('ab\nba\nabab\n')
    names = run('--data', data, '--steps', 3, '--save', path).stdout
    data.unlink()
    assert run('--load', path).stdout == names
    refused(run('--load', path, '--steps', 4), 'data.txt')
    refused(run('--load', path, '--novel'), 'data.txt')


def test_what_contradicts_the_checkpoint_is_refused(checkpoint, tmp_path):
    for option in ('--n-layer', '--n-embd', '--n-head', '--block-size'):
        refused(run('--load', checkpoint, option, 8), option, 'contradicts')
    (tmp_path / 'other').write_text('emma\nŁucja\n', encoding='utf-8')
    refused(run('--load', checkpoint, '--data', tmp_path / 'other'), 'vocabulary', 'Ł')


# ---- the format --------------------------------------------------------------------------------

def test_the_file_is_safetensors_with_all_that_a_run_consists_of(checkpoint):
    header, numbers = parts(checkpoint.read_bytes())
    metadata = header.pop('__metadata__')
    assert all(isinstance(value, str) for value in metadata.values())
    assert json.loads(metadata['settings'])['n_embd'] == 4 and metadata['step'] == '12'
    assert metadata['vocabulary'] == 'abcdefghijklmnopqrstuvwxyz'
    _, _, model, adam, _ = load_checkpoint(checkpoint)
    assert {name for name in header if not name.startswith('adam.')} == set(model)
    end = 0
    for entry in header.values():                      # in the order of the file, without a gap
        assert entry['dtype'] == 'F64' and entry['data_offsets'][0] == end
        end = entry['data_offsets'][1]
        assert end - entry['data_offsets'][0] == 8 * entry['shape'][0] * entry['shape'][1]
    assert end == len(numbers)
    first, last = header['layer0.mlp_fc1']['data_offsets']
    stored = struct.unpack(f'<{(last - first) // 8}d', numbers[first:last])
    assert list(stored) == [value.data for row in model['layer0.mlp_fc1'] for value in row]
    assert struct.unpack('<d', numbers[-8:])[0] == adam.v[-1]


@pytest.mark.parametrize('name', ['flip', 'cut', 'splice'])
def test_damage_anywhere_is_a_clean_error_or_the_same_model(name, checkpoint):
    data, before, rng = checkpoint.read_bytes(), state(checkpoint), random.Random(name)
    damaged = 0
    for _ in range(1000):
        place = rng.choice([rng.randrange(len(data)), rng.randrange(9000), rng.randrange(16)])
        if name == 'flip':
            new = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1:]
        elif name == 'cut':
            new = data[:place]
        else:
            new = data[:place] + rng.randbytes(rng.randrange(9)) + data[place + rng.randrange(9):]
        checkpoint.write_bytes(new)
        try:
            assert state(checkpoint) == before and new == data
        except Problem as problem:
            damaged += 1
            assert str(checkpoint) in str(problem)
    assert damaged > 900


def change(header, **metadata):
    header['__metadata__'].update(metadata)


def resettle(header, **settings):
    old = json.loads(header['__metadata__']['settings'])
    change(header, settings=json.dumps({**old, **settings}))


HOSTILE = {                                            # all with a hash that is right
    'a wrong dtype': lambda h: h['wte'].update(dtype='F32'),
    'a wrong shape': lambda h: h['wte'].update(shape=[4, 27]),
    'overlapping offsets': lambda h: h['wpe'].update(data_offsets=h['wte']['data_offsets']),
    'negative offsets': lambda h: h['wpe'].update(data_offsets=[-8, 8]),
    'a missing tensor': lambda h: h.pop('lm_head'),
    'a missing moment': lambda h: h.pop('adam.v.wte'),
    'an extra tensor': lambda h: h.update(more=h['wte']),
    'an entry of another kind': lambda h: h.update(wte=[1]),
    'no metadata': lambda h: h.update(__metadata__={}),
    'an unknown version': lambda h: change(h, version='microgpt 99'),
    'a wrong vocabulary': lambda h: change(h, vocabulary='ba'),
    'a vocabulary of another kind': lambda h: change(h, vocabulary=[1]),
    'a wrong step': lambda h: change(h, step='-1'),
    'a step of another kind': lambda h: change(h, step='x'),
    'a wrong random state': lambda h: change(h, random='[3, [1, 2], null]'),
    'a random state of huge numbers': lambda h: change(h, random=f'[3, {[9 ** 99] * 625}, null]'),
    'settings of another kind': lambda h: change(h, settings='7'),
    'settings that nest deeply': lambda h: change(h, settings='[' * 100_000),
    'a setting too many': lambda h: resettle(h, load='/etc/passwd'),
    'a setting of another kind': lambda h: resettle(h, n_layer=True),
    'a size of zero': lambda h: resettle(h, n_embd=0),
    'a gigantic size': lambda h: resettle(h, n_embd=10 ** 12),
    'a gigantic number of layers': lambda h: resettle(h, n_layer=10 ** 12),
    'heads that do not divide': lambda h: resettle(h, n_head=3),
    'a call for help': lambda h: resettle(h, help=True),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_header_is_refused(name, checkpoint):
    header, numbers = parts(checkpoint.read_bytes())
    HOSTILE[name](header)
    header.setdefault('__metadata__', {})
    checkpoint.write_bytes(whole(header, numbers))
    with pytest.raises(Problem):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize('data', [
    b'', b'abc', b'\0' * 8, b'\xff' * 100, struct.pack('<Q', 10 ** 18) + b'{}', b'PK\x03\x04' * 9,
    struct.pack('<Q', 2) + b'[]', struct.pack('<Q', 2) + b'{}', struct.pack('<Q', 4) + b'null',
    struct.pack('<Q', 200_000) + b'[' * 200_000, struct.pack('<Q', 3) + b'\xff\xfe\xfd'],
    ids=lambda data: data[:12].hex())
def test_what_is_no_checkpoint_is_refused_in_one_line(data, tmp_path):
    path = tmp_path / 'model'
    path.write_bytes(data)
    refused(run('--load', path), str(path))
    assert path.read_bytes() == data


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -float('inf'), 1e300])
def test_numbers_that_are_none_are_refused(number, checkpoint):
    header, numbers = parts(checkpoint.read_bytes())
    checkpoint.write_bytes(whole(header, numbers[:80] + struct.pack('<d', number) + numbers[88:]))
    with pytest.raises(Problem, match='nan'):
        load_checkpoint(checkpoint)


def test_a_message_stays_one_line_whatever_the_file_says(checkpoint):
    header, numbers = parts(checkpoint.read_bytes())
    header['new\nline\x1b[31m'] = header['wte']
    checkpoint.write_bytes(whole(header, numbers))
    result = run('--load', checkpoint)
    refused(result, 'tensor')
    assert '\x1b' not in result.stderr and result.stderr.count('\n') == 1


# ---- faults ------------------------------------------------------------------------------------

def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    path, rng = tmp_path / 'model', random.Random(1)
    saving = ['--save', path, '--save-every', 1]
    step = 0
    for _ in range(20):
        model = ['--load', path] if path.exists() else [*TINY[:-2], '--steps', 100_000]
        process = start(*model, *saving)
        while not process.stderr.readline().startswith('step'):
            pass
        time.sleep(rng.uniform(0.005, 0.1))
        process.kill()
        process.communicate()
        if path.exists():
            new = load_checkpoint(path)[3].step
            assert new >= step
            step = new
    assert step > 0
    run('--load', path, '--steps', step + 1, '--save', path, '--samples', 0)
    assert os.listdir(tmp_path) == ['model']


def test_a_read_only_folder_is_told_before_training(tmp_path):
    folder = tmp_path / 'folder'
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip('for this user no folder is read-only')
    refused(run(*TINY, '--save', folder / 'model'), 'cannot be written')


def test_a_full_disk_keeps_the_old_checkpoint_and_the_names(checkpoint):
    before = checkpoint.read_bytes()

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    result = run('--load', checkpoint, '--steps', 20, '--save', checkpoint, '--save-every', 3,
                 '--samples', 5, preexec_fn=small_files)
    assert result.returncode == 2 and result.stdout.count('\n') == 5
    assert result.stderr.count(': not saved: ') == 3 and 'Traceback' not in result.stderr
    assert checkpoint.read_bytes() == before and os.listdir(checkpoint.parent) == [checkpoint.name]


# ---- all the cores -----------------------------------------------------------------------------

BATCH = ['--data', str(SMALL), '--n-embd', '8', '--steps', '4', '--batch-size', '5', '--val-fraction', '0']


def test_the_number_of_workers_changes_no_bit(tmp_path):
    results = []
    for workers in (1, 2, 3, 9):
        path, log = tmp_path / f'model {workers}', tmp_path / f'log {workers}'
        names = run(*BATCH, '--workers', workers, '--save', path, '--log', log).stdout
        results.append((names, path.read_bytes(), log.read_text()))
    assert results[0][0] and all(result == results[0] for result in results)
    path = tmp_path / 'model 1'
    more = [run('--load', path, '--steps', 6, '--workers', workers, '--save', tmp_path / 'more').stdout
            and (tmp_path / 'more').read_bytes() for workers in (1, 2)]
    assert more[0] == more[1]


def stat(pid):
    """The fields of /proc/PID/stat from the state on; of a process that has ended, those of a zombie."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rsplit(')', 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return ['Z'] + ['0'] * 20


def workers_of(process):
    """The process ids of the workers of a running program."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        if stat(pid)[1] == str(process.pid):
            with open(f'/proc/{pid}/cmdline') as file:
                found += [int(pid)] if 'spawn_main' in file.read() else []
    return found


def is_running(pid):
    return stat(pid)[0] != 'Z'


def seconds_used(pid):
    return sum(map(int, stat(pid)[11:13])) / os.sysconf('SC_CLK_TCK')


def assert_gone(pids):
    """Asserts that no such process runs after two seconds."""
    for _ in range(200):
        if any(map(is_running, pids)):
            time.sleep(0.01)
    assert not any(map(is_running, pids))


def start_batch(path):
    process = start(*BATCH, '--steps', 100_000, '--workers', 2, '--save', path, '--save-every', 1)
    while not path.exists():
        time.sleep(0.01)
    pids = workers_of(process)
    assert len(pids) == 2
    return process, pids


def test_workers_and_documents_far_longer_than_the_block_get_along(tmp_path):
    (tmp_path / 'data').write_text('\n'.join(['ab' * 100_000] * 6) + '\n')
    result = run('--data', tmp_path / 'data', '--batch-size', 4, '--workers', 2, '--steps', 2,
                 '--n-embd', 64, '--samples', 1)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='finds processes by /proc')
@pytest.mark.parametrize('end', ['kill worker', 'kill parent', 'Ctrl-C'])
def test_workers_end_with_the_run_whatever_ends_it(end, tmp_path):
    process, pids = start_batch(tmp_path / 'model')
    if end == 'kill worker':
        os.kill(pids[1], signal.SIGKILL)
    elif end == 'kill parent':
        process.kill()
    else:
        for pid in [process.pid, *pids]:               # as a terminal does: to the whole group
            os.kill(pid, signal.SIGINT)
    process.wait(timeout=60)
    assert_gone(pids)
    _, stderr = process.communicate()
    status, words = {'kill worker': (1, 'a worker process has died'), 'kill parent': (-9, ''),
                     'Ctrl-C': (130, 'stopped by Ctrl-C')}[end]
    assert process.returncode == status and 'Traceback' not in stderr
    assert words in (stderr.splitlines() or [''])[-1]
    assert load_checkpoint(tmp_path / 'model')[3].step > 0


@pytest.mark.skipif(not os.path.isdir('/proc/self'), reason='finds processes by /proc')
def test_a_worker_in_the_midst_of_a_long_document_ends_with_its_parent(tmp_path):
    (tmp_path / 'data').write_text('ab' * 200 + '\n' + 'ba' * 200 + '\n')
    process = start('--data', tmp_path / 'data', '--block-size', 400, '--n-embd', 48, '--batch-size', 2,
                    '--n-layer', 3, '--workers', 2, '--val-fraction', 0)
    pids = []
    while len(pids) < 2 or min(map(seconds_used, pids)) < 1.5:
        time.sleep(0.05)
        pids = workers_of(process)
    process.kill()
    process.wait()                                     # not communicate(), which would wait for workers
    assert_gone(pids)
    process.communicate()
