"""How fast microgpt is, beside the textbook graph on the same interpreter; prints JSON.

python tests/benchmark.py [--data FILE] [--steps N]

The textbook graph is the one that every introduction builds: a node for each binary operation, a
recursive topological sort, and a plain training loop, in which `loss` keeps the graph of a step
until that of the next is complete. It is built here from a plain class of its own, trains on the
same documents from the same parameters, and must arrive at the same losses. The two take turns, a
few steps each; all times are medians. Pausing Python's garbage collector is a part of what train()
does, and the textbook does not; how much comes from that alone, a second run with it off shows.
"""
import argparse
import gc
import itertools
import json
import math
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import microgpt  # noqa: E402

TURN = 5                                               # how many steps a side makes in its turn
SIZES = {'default': microgpt.Config(), 'n_embd 32, n_layer 2': microgpt.Config(2, 32)}


class Node:
    """The textbook's value: one binary operation, the nodes it came from and its slopes by them."""

    def __init__(self, data, parents=(), slopes=()):
        self.data, self.grad, self.parents, self.slopes = data, 0.0, parents, slopes

    def __add__(self, other):
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        other = other if isinstance(other, Node) else Node(other)
        return Node(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, n): return Node(self.data ** n, (self,), (n * self.data ** (n - 1),))
    def __neg__(self): return self * -1.0
    def __sub__(self, other): return self + -other
    def __truediv__(self, other): return self * other ** -1
    def __radd__(self, other): return self + other
    def __rmul__(self, other): return self * other
    def exp(self): return Node(math.exp(self.data), (self,), (math.exp(self.data),))
    def log(self): return Node(math.log(self.data), (self,), (1 / self.data,))
    def relu(self): return Node(max(0.0, self.data), (self,), (float(self.data > 0),))

    def backward(self):
        order, visited = [], set()

        def visit(node):
            if node not in visited:
                visited.add(node)
                for parent in node.parents:
                    visit(parent)
                order.append(node)
        visit(self)
        self.grad = 1.0
        for node in reversed(order):
            for parent, slope in zip(node.parents, node.slopes):
                parent.grad += slope * node.grad


class Textbook:
    """The same GPT on textbook nodes."""

    def __init__(self, start):
        self.start = start
        self.model = {name: [[Node(x) for x in row] for row in matrix]
                      for name, matrix in microgpt.plain(start.model).items()}
        self.params = [node for matrix in self.model.values() for row in matrix for node in row]
        self.m, self.v = [0.0] * len(self.params), [0.0] * len(self.params)

    @staticmethod
    def times(matrix, x):
        return [sum(w_i * x_i for w_i, x_i in zip(row, x)) for row in matrix]

    @staticmethod
    def softmax(scores):
        highest = max(score.data for score in scores)
        exps = [(score - highest).exp() for score in scores]
        together = sum(exps)
        return [e / together for e in exps]

    @staticmethod
    def norm(x):
        scale = (sum(x_i * x_i for x_i in x) / len(x) + 1e-5) ** -0.5
        return [x_i * scale for x_i in x]

    def logits(self, token, position, cache):
        config, model = self.start.config, self.model
        size = config.n_embd // config.n_head
        x = self.norm([a + b for a, b in zip(model['wte'][token], model['wpe'][position])])
        for i, (keys, values) in enumerate(cache):
            normed = self.norm(x)
            query = self.times(model[f'layer{i}.attn_wq'], normed)
            keys.append(self.times(model[f'layer{i}.attn_wk'], normed))
            values.append(self.times(model[f'layer{i}.attn_wv'], normed))
            mixed = []
            for first in range(0, config.n_embd, size):
                part = range(first, first + size)
                weights = self.softmax([sum(query[j] * key[j] for j in part) / size ** 0.5
                                        for key in keys])
                mixed += [sum(w * value[j] for w, value in zip(weights, values)) for j in part]
            x = [a + b for a, b in zip(x, self.times(model[f'layer{i}.attn_wo'], mixed))]
            hidden = [h.relu() for h in self.times(model[f'layer{i}.mlp_fc1'], self.norm(x))]
            x = [a + b for a, b in zip(x, self.times(model[f'layer{i}.mlp_fc2'], hidden))]
        return self.times(model['lm_head'], x)

    def new_cache(self):
        return [([], []) for _ in range(self.start.config.n_layer)]

    def training(self):
        """Training steps without end; yields the losses."""
        for step in itertools.count():
            tokens, cache, losses = self.start.tokens(step), self.new_cache(), []
            for position in range(min(self.start.config.block_size, len(tokens) - 1)):
                p = self.softmax(self.logits(tokens[position], position, cache))
                losses.append(-p[tokens[position + 1]].log())
            loss = sum(losses) / len(losses)
            loss.backward()
            rate, n = 0.01 * (1 - step / 1000), step + 1
            for i, p in enumerate(self.params):
                self.m[i] = 0.85 * self.m[i] + 0.15 * p.grad
                self.v[i] = 0.99 * self.v[i] + 0.01 * p.grad ** 2
                m_hat, v_hat = self.m[i] / (1 - 0.85 ** n), self.v[i] / (1 - 0.99 ** n)
                p.data -= rate * m_hat / (v_hat ** 0.5 + 1e-8)
                p.grad = 0.0
            yield loss.data

    def sample(self, rng):
        """The tokens of a document, BOS at the end included."""
        bos, tokens, cache = len(self.model['wte']) - 1, [], self.new_cache()
        for position in range(self.start.config.block_size):
            logits = self.logits(tokens[-1] if tokens else bos, position, cache)
            p = self.softmax([logit / 0.5 for logit in logits])
            tokens += rng.choices(range(len(p)), weights=[p_i.data for p_i in p])
            if tokens[-1] == bos:
                break
        return tokens


class Start:
    """Documents and fresh parameters, the same for every program."""

    def __init__(self, data, config=microgpt.Config()):
        rng = random.Random(42)
        self.docs, self.config = microgpt.load_docs(data), config
        rng.shuffle(self.docs)
        self.chars = microgpt.alphabet(self.docs)
        self.shapes = microgpt.shapes(config, len(self.chars) + 1)
        self.model = microgpt.new_model(self.shapes, lambda: rng.gauss(0, 0.08))
        self.params = microgpt.parameters(self.model)

    def tokens(self, step):
        return microgpt.encode(self.docs[step % len(self.docs)], self.chars)

    def training(self, batch=1, pipes=None):
        def gradients_at(step):
            tokens = [self.tokens(step * batch + i) for i in range(batch)]
            if batch == 1:
                return microgpt.document_gradients(self.model, self.config, tokens[0])
            if pipes:
                return microgpt.mean(microgpt.shared_gradients(pipes, self.params, tokens))
            return microgpt.mean([microgpt.document_gradients(self.model, self.config, document)
                                  for document in tokens])
        return microgpt.train(microgpt.Adam(self.params), gradients_at, 1000)


def timed(function, *args):
    began = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - began, result


def turns(data, steps, textbook_collects):
    """Median seconds of a training step of both sides, and how far their losses differ at the most."""
    start = Start(data)
    sides = {'textbook': Textbook(start).training(), 'microgpt': start.training()}
    times, worst = {side: [] for side in sides}, 0.0
    for _ in range(max(1, steps // TURN)):
        losses = []
        for side, training in sides.items():
            (gc.enable if side == 'textbook' and textbook_collects else gc.disable)()
            for _ in range(TURN):
                seconds, result = timed(next, training)
                times[side].append(seconds)
                losses.append(result if side == 'textbook' else result[1])
        worst = max(worst, *(abs(a - b) / a for a, b in zip(losses[:TURN], losses[TURN:])))
    gc.enable()
    assert worst < 1e-9, f'the losses differ by {worst}: this is no yardstick'
    return {side: statistics.median(times[side]) for side in sides}, worst


def sampling(data):
    """Median seconds for a token of both sides."""
    start = Start(data)
    textbook, model = Textbook(start), microgpt.plain(start.model)
    times = {'textbook': [], 'microgpt': []}
    for seed in range(30):
        seconds, tokens = timed(textbook.sample, random.Random(seed))
        times['textbook'].append(seconds / len(tokens))
        rng = random.Random(seed)
        seconds, tokens = timed(microgpt.sample, model, start.config,
                                lambda logits: microgpt.draw(logits, rng))
        times['microgpt'].append(seconds / min(len(tokens) + 1, start.config.block_size))
    return {side: statistics.median(times[side]) for side in times}


def against_the_textbook(data, steps):
    step, worst = turns(data, steps, textbook_collects=True)
    quiet, _ = turns(data, steps, textbook_collects=False)
    token = sampling(data)
    return {
        'largest_difference_of_losses': worst,
        'ms_per_step': {side: round(1000 * step[side], 2) for side in step},
        'training_ratio': round(step['textbook'] / step['microgpt'], 1),
        'training_ratio_no_garbage_collector': round(quiet['textbook'] / quiet['microgpt'], 1),
        'tokens_per_second_sampled': {side: round(1 / token[side]) for side in token},
        'sampling_ratio': round(token['textbook'] / token['microgpt'], 1)}


def growth(data):
    """Nanoseconds of a step per parameter and token, at the default size and at a larger one."""
    starts = {name: Start(data, config) for name, config in SIZES.items()}
    steps = {name: start.training() for name, start in starts.items()}
    found = {name: [] for name in SIZES}
    for i in range(40):
        for name, start in starts.items():
            seconds, _ = timed(next, steps[name])
            found[name].append(1e9 * seconds / len(start.params) / (len(start.tokens(i)) - 1))
    gc.enable()
    return {name: round(statistics.median(runs), 1) for name, runs in found.items()}


def batches(data, size, workers):
    """Median seconds of a step on 16 documents, and the losses, of this process and its workers."""
    start = Start(data, SIZES[size])
    pipes = microgpt.start_workers(workers, start.config, len(start.chars) + 1) if workers > 1 else None
    steps = start.training(16, pipes)
    found = [timed(next, steps) for _ in range(14)]
    return statistics.median(seconds for seconds, _ in found[4:]), [loss for _, (_, loss) in found]


def all_cores(data):
    """How much faster a step on 16 documents is with two workers than with one, by size."""
    ratios = {}
    for size in SIZES:
        seconds, losses = {1: [], 2: []}, []
        for workers in (1, 2) * 3:                     # in turns, each in a process of its own
            median, found = json.loads(child(data, '--workers', workers, '--size', size))
            seconds[workers].append(median)
            losses.append(found)
        assert all(found == losses[0] for found in losses), 'the losses differ'
        ratios[size] = round(statistics.median(seconds[1]) / statistics.median(seconds[2]), 2)
    return ratios


def child(data, *args):
    """What this script prints with these arguments in a process of its own."""
    return subprocess.run([sys.executable, __file__, '--data', data, *map(str, args)],
                          stdout=subprocess.PIPE, check=True).stdout


def peak(data, job, n):
    """The peak memory, in MiB, of a fresh process that does a job n times."""
    start = Start(data)
    if job == 'textbook steps':
        for _, _ in zip(range(n), Textbook(start).training()):
            pass
    elif job == 'microgpt steps':
        for _, _ in zip(range(n), start.training()):
            pass
    else:
        model, rng = microgpt.plain(start.model), random.Random(1)
        for _ in range(n):
            microgpt.sample(model, start.config, lambda logits: microgpt.draw(logits, rng))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(data):
    jobs = [('textbook steps', 20), ('microgpt steps', 20), ('microgpt steps', 400),
            ('names sampled', 100), ('names sampled', 10_000)]
    return {f'{n} {job}': round(float(child(data, '--peak', job, '--steps', n)), 1) for job, n in jobs}


def median_ms(function, n=7):
    return round(1000 * statistics.median(timed(function)[0] for _ in range(n)), 2)


def primitives():
    rng = random.Random(42)

    def thousand_operations():
        value = leaf = microgpt.Value(1.0)
        for _ in range(500):
            value = value * 0.999 + leaf
        value.backward()
    return {'random_1m': median_ms(lambda: [rng.random() for _ in range(1_000_000)], 5),
            'gauss_100k': median_ms(lambda: [rng.gauss(0, 1) for _ in range(100_000)], 5),
            'value_backward_1k': median_ms(thousand_operations, 51)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--data', default=str(ROOT / 'input.txt'))
    parser.add_argument('--steps', type=int, default=50, help='steps of each side')
    parser.add_argument('--peak', help=argparse.SUPPRESS)
    parser.add_argument('--workers', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--size', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print(peak(args.data, args.peak, args.steps))
        return
    if args.workers:
        print(json.dumps(batches(args.data, args.size, args.workers)))
        return
    used = memory(args.data)                           # first: children count their parent's peak
    print(json.dumps({
        'python': f'{platform.python_implementation()} {platform.python_version()}',
        **against_the_textbook(args.data, args.steps),
        'ns_per_parameter_and_token': growth(args.data),
        'speed_of_2_workers_on_16_documents': all_cores(args.data),
        'peak_memory_mib': used,
        'ms': primitives()}, indent=1))


if __name__ == '__main__':
    main()
