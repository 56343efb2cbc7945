"""What everybody changes in Part I, as recipes that are tested.

    python3 tests/recipes.py                     lists them
    python3 tests/recipes.py GELU > changed.py   writes the program so changed
    python3 tests/recipes.py --measure           what each does to the held-out loss

A recipe replaces pieces of Part I's text, so that you can do the same by hand in
the file. Several names give a program with several recipes, if these replace
different pieces. The whole program works with all but the last three, with `--save`
and `--load`, too. Those are for Part I alone:

    python3 -c "import changed; changed.main()"
"""

import argparse
import contextlib
import difflib
import functools
import gc
import io
import math
import multiprocessing
import random
import sys
import tempfile
import types
from pathlib import Path

import experiments

SOURCE = (experiments.ROOT / 'microgpt.py').read_text('utf-8')


def before(place, text):
    """A piece that stays where it is, and gets this text before it."""
    return place, text + place


def after(place, text):
    """A piece that stays where it is, and gets this text after it."""
    return place, place + text


# ---- the recipes -------------------------------------------------------------

# Each is a list of pairs: what stands in Part I, and what to put there.

GELU = [
    after(
        'return Value(0.0) if self.data <= 0 else self\n',
        '''
    def gelu(self):
        """It times the share of a normal distribution that is below it."""
        x = self.data
        below = (1 + math.erf(x / math.sqrt(2))) / 2
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return Value(x * below, (self,), (below + x * density,))
''',
    ),
    ('score.relu() for', 'score.gelu() for'),
]

ROPE = [
    ("    model['wpe'] = matrix(config.block_size, n)\n", ''),
    ("add(model['wte'][token], model['wpe'][position])", "model['wte'][token]"),
    before(
        'def multi_head(',
        '''\
def rotate(heads, position):
    """The lists of all heads, each pair of numbers turned as the position says."""
    turned = [[] for _ in heads]
    for head, new in zip(heads, turned):
        assert len(head) % 2 == 0, 'each head needs an even count of numbers'
        for i in range(0, len(head), 2):
            angle = position / 10000 ** (i / len(head))  # 10000: taste
            cos, sin = math.cos(angle), math.sin(angle)
            new.append(head[i] * cos - head[i + 1] * sin)
            new.append(head[i] * sin + head[i + 1] * cos)
    return turned


''',
    ),
    (
        "split(linear(x, layer['attn_wq']), n_head)",
        "rotate(split(linear(x, layer['attn_wq']), n_head), len(keys))",
    ),
    (
        "split(linear(x, layer['attn_wk']), n_head)",
        "rotate(split(linear(x, layer['attn_wk']), n_head), len(keys))",
    ),
]

TIED = [
    ("model['lm_head'] = matrix(vocab_size, n)", "model['lm_head'] = model['wte']"),
]

FINAL_NORM = [
    ("linear(x, model['lm_head'])", "linear(rmsnorm(x), model['lm_head'])"),
]

LAYERNORM = [
    before(
        'class Config(',
        '''\
def layernorm(x, norm):
    """x (n,), moved to the mean 0 and scaled, then times a gain and plus a bias."""
    mean = total(x) / len(x)
    centred = rmsnorm([x_i - mean for x_i in x])
    scaled = [x_i * gain for x_i, gain in zip(centred, norm['gain'])]
    return add(scaled, norm['bias'])


''',
    ),
    (
        "rmsnorm(add(model['wte'][token], model['wpe'][position]))",
        "layernorm(add(model['wte'][token], model['wpe'][position]), model['ln_0'])",
    ),
    ('multi_head(rmsnorm(x), ', "multi_head(layernorm(x, layer['ln_1']), "),
    ('mlp(rmsnorm(x), ', "mlp(layernorm(x, layer['ln_2']), "),
    before(
        '    n = config.n_embd\n',
        """\
    def norm():
        gain = [Value(1.0) for _ in range(n)]
        return {'gain': gain, 'bias': [Value(0.0) for _ in range(n)]}

""",
    ),
    before("    model['layers'] = [\n", "    model['ln_0'] = norm()\n"),
    before(
        "            'attn_wq': matrix(n, n),\n",
        "            'ln_1': norm(),\n            'ln_2': norm(),\n",
    ),
]

SWIGLU = [
    (
        """\
    hidden = [score.relu() for score in linear(x, layer['mlp_fc1'])]
""",
        """\
    gates = [score / ((-score).exp() + 1) for score in linear(x, layer['mlp_gate'])]
    hidden = [gate * score for gate, score in zip(gates, linear(x, layer['mlp_fc1']))]
""",
    ),
    (
        """\
            'mlp_fc1': matrix(4 * n, n),  # 4: more patterns to look for; taste
            'mlp_fc2': matrix(n, 4 * n),
""",
        """\
            'mlp_gate': matrix(8 * n // 3, n),  # 8 / 3: as many parameters as before
            'mlp_fc1': matrix(8 * n // 3, n),
            'mlp_fc2': matrix(n, 8 * n // 3),
""",
    ),
]

EXPERTS = [
    before(
        'def gpt(',
        '''\
def mixture(x, layer):
    """The mean of what all experts say about x (n_embd,), weighted by a gate."""
    weights = softmax(linear(x, layer['gate']))
    said = [mlp(x, expert) for expert in layer['experts']]
    return linear(weights, zip(*said))


''',
    ),
    ('add(x, mlp(', 'add(x, mixture('),
    (
        """\
            'mlp_fc1': matrix(4 * n, n),  # 4: more patterns to look for; taste
            'mlp_fc2': matrix(n, 4 * n),
""",
        """\
            'gate': matrix(2, n),
            'experts': [
                {'mlp_fc1': matrix(4 * n, n), 'mlp_fc2': matrix(n, 4 * n)}
                for _ in range(2)
            ],
""",
    ),
]

LORA = [
    before(
        'class Model(',
        '''\
class Frozen(Value):
    """A parameter that training leaves as it is."""


''',
    ),
    ('[[Value(rng.gauss', '[[Frozen(rng.gauss'),
    before(
        '    n = config.n_embd\n',
        """\
    def adapter():  # of rank 2; 0 at first, for one of its matrices is
        down = [[Value(rng.gauss(0, 0.08)) for _ in range(n)] for _ in range(2)]
        return {'down': down, 'up': [[Value(0.0), Value(0.0)] for _ in range(n)]}

""",
    ),
    before(
        "            'attn_wq': matrix(n, n),\n",
        "            'lora_wq': adapter(),\n            'lora_wv': adapter(),\n",
    ),
    before(
        'def multi_head(',
        '''\
def adapted(x, rows, adapter):
    """linear(x, rows), and what an adapter adds to it."""
    return add(linear(x, rows), linear(linear(x, adapter['down']), adapter['up']))


''',
    ),
    ("linear(x, layer['attn_wq'])", "adapted(x, layer['attn_wq'], layer['lora_wq'])"),
    ("linear(x, layer['attn_wv'])", "adapted(x, layer['attn_wv'], layer['lora_wv'])"),
    ('g = p.grad\n', 'g = 0.0 if isinstance(p, Frozen) else p.grad\n'),
]

MOMENTUM = [
    (
        'keeps a running mean m of the gradient of each, and v of g * g.',
        'keeps a sum m of the gradients of each, in which old ones fade.',
    ),
    ('rate, beta1=0.85, beta2=0.99, eps=1e-8):', 'rate, momentum=0.9):'),
    (
        """\
        m, v = self.m, self.v
        m_correction = 1 - beta1 ** self.step
        v_correction = 1 - beta2 ** self.step
        for i, p in enumerate(self.params):
            g = p.grad
            m[i] = beta1 * m[i] + (1.0 - beta1) * g
            v[i] = beta2 * v[i] + (1.0 - beta2) * g * g
            m_hat = m[i] / m_correction
            v_hat = v[i] / v_correction
            p.data -= rate * m_hat / (math.sqrt(v_hat) + eps)  # eps: never divide by 0
""",
        """\
        for i, p in enumerate(self.params):
            self.m[i] = momentum * self.m[i] + p.grad
            p.data -= rate * self.m[i]
""",
    ),
    ('adam.update(rate=0.01 * (', 'adam.update(rate=0.03 * ('),
]

ACCUMULATION = [
    (
        """\
        doc = docs[step % len(docs)]
        loss = document_loss(model, encode(doc, vocab))
        loss.backward()
        adam.update(rate=0.01 * (1 - step / steps))
        Value.tape.clear()
        losses.append(loss.data)
""",
        """\
        for i in range(4 * step, 4 * step + 4):
            doc = docs[i % len(docs)]
            loss = document_loss(model, encode(doc, vocab))
            (loss / 4).backward()  # adds to what is there: in the end the mean
            Value.tape.clear()
            losses.append(loss.data)
        adam.update(rate=0.01 * (1 - step / steps))
""",
    ),
]

PAIRS = [
    (
        'A string of all characters in docs, sorted, and BOS;',
        'A list of characters, of frequent pairs, and BOS;',
    ),
    (
        """\
    return ''.join(sorted(chars)) + BOS
""",
        """\
    pairs = [doc[i : i + 2] for doc in docs for i in range(len(doc) - 1)]
    counts = dict.fromkeys(sorted(pairs), 0)
    for pair in pairs:
        counts[pair] += 1
    frequent = sorted(counts, key=lambda pair: -counts[pair])[:50]  # 50: taste
    return [*sorted(chars), *[pair for pair in frequent if counts[pair] > 1], BOS]
""",
    ),
    (
        """\
    return [vocab.index(char) for char in BOS + doc + BOS]
""",
        """\
    pieces = [BOS]
    while doc:
        pieces.append(doc[:2] if doc[:2] in vocab else doc[0])
        doc = doc[len(pieces[-1]) :]
    return [vocab.index(piece) for piece in [*pieces, BOS]]
""",
    ),
]

BEST = [
    before(
        'def main(',
        '''\
def validation_loss(model, docs, vocab):
    """The mean loss of documents that are not for training: a number."""
    losses = []
    for doc in docs:
        losses.append(document_loss(model, encode(doc, vocab)).data)
        Value.tape.clear()
    return sum(losses) / len(losses)


''',
    ),
    after(
        '    adam = Adam(parameters(model))\n    losses = []\n',
        """\
    n = len(docs) // 10 + 1
    held_out, docs = docs[:n][:200], docs[n:]
    lowest, best = math.inf, numbers(adam.params)
""",
    ),
    after(
        "print(f'step {adam.step:4} / {steps} | mean loss {mean_loss:.4f}')\n",
        """\
            val_loss = validation_loss(model, held_out, vocab)
            print(f'validation loss {val_loss:.4f}')
            if val_loss < lowest:
                lowest, best = val_loss, numbers(adam.params)
    for p, x in zip(adam.params, best):
        p.data = x
""",
    ),
]

RECIPES = {  # by name: what it is, and its pieces
    'GELU': ('GELU for relu: an operation with a slope of its own', GELU),
    'RoPE': ('rotary positions: queries and keys are turned, no wpe', ROPE),
    'tied': ('tied embeddings: lm_head is wte', TIED),
    'final-norm': ('a norm before lm_head', FINAL_NORM),
    'LayerNorm': ('LayerNorm, with learned gain and bias, for RMSNorm', LAYERNORM),
    'SwiGLU': ('SwiGLU: a gate for each of the hidden numbers', SWIGLU),
    'experts': ('two MLPs, and a gate that weighs what they say', EXPERTS),
    'LoRA': ('LoRA: thin matrices are trained, the others frozen', LORA),
    'momentum': ('SGD with momentum for Adam', MOMENTUM),
    'accumulation': (
        'gradient accumulation: four documents before an update',
        ACCUMULATION,
    ),
    'pairs': (
        'syllables: the most frequent pairs of characters are tokens, too',
        PAIRS,
    ),
    'best': ('a validation loss, and in the end the model that had the best', BEST),
}
OF_MAIN = ('accumulation', 'pairs', 'best')  # the others are for the tool, too


# ---- a check of one's own gradients ------------------------------------------


def check_gradients(loss_of, params, h=1e-7):
    """Compare gradients with how much the loss grows when a parameter grows by h."""
    loss = loss_of()
    loss.backward()
    for p in random.sample(params, min(60, len(params))):
        p.data += h
        slope = (loss_of().data - loss.data) / h
        p.data -= h
        assert math.isclose(p.grad, slope, rel_tol=1e-3, abs_tol=1e-6), (p, slope)
        p.tape.clear()


# ---- programs with recipes, and what they are worth --------------------------


def text(*names):
    """The text of microgpt.py, changed by some recipes."""
    source = SOURCE
    for name in names:
        for old, new in RECIPES[name][1]:
            assert source.count(old) == 1, f'{name}: is not there just once: {old!r}'
            source = source.replace(old, new)
    return source


@functools.cache
def changed(*names):
    """microgpt changed by some recipes, as a module of its own."""
    module = types.ModuleType('changed')
    exec(text(*names), module.__dict__)
    return module


def lines(name):
    """How many lines a recipe adds or changes; empty ones do not count."""
    diff = difflib.unified_diff(SOURCE.splitlines(), text(name).splitlines(), n=0)
    return sum(line[0] == '+' and line.strip() != '+' for line in list(diff)[2:])


def held_out_loss(job):
    """The held-out loss of a changed main's model, in nats a character."""
    path, names, steps, seed = job
    gc.disable()  # as the program does
    variant = changed(*names)
    train, held_out, _ = experiments.load(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'train.txt')
        file.write_text('\n'.join(train), 'utf-8')
        vocab = variant.vocabulary(train)
        with contextlib.redirect_stdout(io.StringIO()):
            model = variant.main(file, steps, samples=0, seed=seed)
    nats = characters = 0
    for doc in held_out:
        tokens = variant.encode(doc, vocab)
        predicted = tokens[1 : model['config'].block_size + 1]
        nats += variant.document_loss(model, tokens).data * len(predicted)
        characters += sum(len(vocab[token]) for token in predicted)
        variant.Value.tape.clear()
    return nats / characters


def measure(path, names, steps, seeds, processes):
    """Print a table of recipes, with the held-out loss of what they train.

    steps: a list of how many; there is a column for each.
    """
    rows = [(), *((name,) for name in names)]
    seeds = range(1, seeds + 1)
    jobs = [(path, row, n, seed) for row in rows for n in steps for seed in seeds]
    print('| recipe | lines |', ' | '.join(f'after {n:,} steps' for n in steps), '|')
    print('|---' * (2 + len(steps)) + '|')
    with multiprocessing.Pool(processes) as pool:
        found = pool.imap(held_out_loss, jobs)
        for row in rows:
            start = 'nothing changed | 0'
            if row:
                start = f'`{row[0]}`: {RECIPES[row[0]][0]} | {lines(*row)}'
            losses = [[next(found) for _ in seeds] for _ in steps]
            spread = experiments.spread if len(seeds) > 1 else lambda x: f'{x[0]:.2f}'
            print(f'| {start} |', ' | '.join(map(spread, losses)), '|', flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('names', nargs='*', metavar='RECIPE', help='one or several')
    parser.add_argument('--measure', action='store_true', help='print a table')
    parser.add_argument('--data', default=str(experiments.ROOT / 'input.txt'))
    parser.add_argument('--steps', type=int, nargs='+', default=[1000])
    parser.add_argument('--seeds', type=int, default=1, help='so many runs of each')
    parser.add_argument('--processes', type=int, help='at a time (all cores)')
    given = parser.parse_args(argv)
    for name in given.names:
        if name not in RECIPES:
            parser.error(f'{name}: no such recipe; there are {", ".join(RECIPES)}')
    if given.measure:
        names = given.names or RECIPES
        measure(given.data, names, given.steps, given.seeds, given.processes)
    elif given.names:
        try:
            source = text(*given.names)
        except AssertionError as error:  # recipes for the same piece
            parser.error(error)
        sys.stdout.reconfigure(encoding='utf-8')
        print(source, end='')
    else:
        for name, (what, _) in RECIPES.items():
            print(f'{name:13}{lines(name):3} lines  {what}')


if __name__ == '__main__':
    main()
