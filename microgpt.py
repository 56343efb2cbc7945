"""
A GPT in one file of plain Python: it reads a list of names, learns how names are spelled, and
makes up new ones. Run it with `python microgpt.py`, or read it from here to the end.

The game: given the letters so far, predict the next one. After "e", "m", "m" a good player says
"most likely a". Who can play it can also write: predict, pick a letter by the predicted
probabilities, append it, predict again. Chatbots play the same game with pieces of words.

The player is a formula, the *model*, with a few thousand adjustable numbers, its *parameters*,
random at first. From the letters so far it computes a probability for each possible next letter.
The *loss* says how surprised it was by the letter that really came. For every parameter, calculus
tells how fast the loss grows as that parameter grows, its *gradient*; we move each a little the
other way, and go on to the next name. That is *training*.

Part I is the whole algorithm, that of Andrej Karpathy's microgpt, with the same results up to
rounding; then comes comfort. Numbers marked "taste" or "any" are free; others in formulas are not.
"""

# %% Part I, chapter 1: Data ----------------------------------------------------------------------
# A document is one line of a text file; here, one name. Training reads them in a random order: if
# all the names with "a" came first, the model would learn a lopsided language. All chance comes
# from one random generator, `rng`, started with a known seed (any will do): same seed, same run.

import gc, itertools, math, random
from operator import attrgetter, mul
from typing import NamedTuple

def load_docs(path):
    """The documents in a UTF-8 text file: its lines, stripped, empty ones left out."""
    with open(path, encoding='utf-8-sig') as file:     # -sig: skip the mark that some editors add
        return [line.strip() for line in file if line.strip()]

# %% Part I, chapter 2: Tokens --------------------------------------------------------------------
# A model computes with numbers, so each character is given one, its *token*: its place in the
# sorted alphabet of the data, a = 0 to z = 25. There is one token more, 26, called BOS, "beginning
# of sequence". It stands between names: before the first letter the model sees only BOS, and after
# the last letter BOS is what it should predict: "here begins the next". So emma becomes six tokens,
# BOS e m m a BOS, and five predictions: e after BOS, m after BOS e, ... BOS after BOS e m m a.
def alphabet(docs):
    """All characters of the documents, sorted, as a string: a character's place is its token."""
    return ''.join(sorted(set(''.join(docs))))

def encode(doc, chars):
    """The tokens of a document, with BOS (the number after the last character's) at both ends."""
    return [len(chars)] + [chars.index(char) for char in doc] + [len(chars)]

# %% Part I, chapter 3: Values that find their gradient -------------------------------------------
# Each number in our computation is a Value: it remembers the Values it was computed from and, for
# each of these inputs, its *slope*: how fast the result grows as that input grows. School calculus
# knows the slopes of single steps: in a * b the slope of a is b, in a + b it is 1, in log(a) 1 / a.
# The chain rule makes the gradient of the whole from them. Let a = 2 and b = 3, then c = a * b = 6
# and loss = c + a = 8. We start at the end: the gradient of the loss by itself is 1. Then, going
# back, each Value hands to each of its inputs the slope of that input times its own gradient:
#     loss = c + a    slopes 1 and 1:    c gets 1 * 1 = 1    a gets 1 * 1 = 1
#     c = a * b       slopes 3 and 2:    a gets 3 * 1 = 3    b gets 2 * 1 = 2
# a acts on the loss in two ways, so its gradient is the sum, 4: gradients are added up, never just
# set. And c must have its whole gradient before it hands it on, so all that was made from c takes
# its turn before c. What is made from c is always younger than c: we go from young to old.
class Value:
    """A number that remembers how it was computed.

    data: the number. grad: its gradient; after loss.backward(), the derivative of loss by it.
    op: the operation that made it. inputs: a pair (values, slopes), the Values that went in and its
    derivative by each; several pairs, where the inputs stand in several lists; none for parameters
    and constants, which are called leaves.

    >>> a, b = Value(2.0), Value(3.0)
    >>> loss = a * b + a
    >>> loss.backward()
    >>> loss, a, b
    (Value(data=8.0, grad=1.0), Value(data=2.0, grad=4.0), Value(data=3.0, grad=2.0))
    """
    __slots__ = ('data', 'grad', 'op', 'inputs', 'birth')  # makes objects smaller and faster
    births = itertools.count()                             # a clock: counts every Value ever made

    def __init__(self, data, op='', *inputs):
        self.data, self.grad = data, 0.0
        self.op, self.inputs = op, inputs
        self.birth = next(Value.births)

    def __repr__(self): return f'Value(data={self.data}, grad={self.grad})'
    # One shape for all: Value(result, name, (inputs, slopes)). For a**n: n*a**(n-1), a**n*log(a).
    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, '+', ((self, other), (1.0, 1.0)))
    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, '*', ((self, other), (other.data, self.data)))
    def __pow__(self, n):
        if not isinstance(n, Value):
            return Value(self.data ** n, f'**{n}', ((self,), (n * self.data ** (n - 1),)))
        power, slope = self.data ** n.data, n.data * self.data ** (n.data - 1)
        return Value(power, '**', ((self, n), (slope, power * math.log(self.data))))
    def exp(self): return Value(math.exp(self.data), 'exp', ((self,), (math.exp(self.data),)))
    def log(self): return Value(math.log(self.data), 'log', ((self,), (1 / self.data,)))
    def relu(self): return Value(max(self.data, 0.0), 'relu', ((self,), (float(self.data > 0),)))
    # The rest follows from these. (For 2 - value Python calls value.__rsub__(2), and so on.)
    def __neg__(self): return self * -1
    def __sub__(self, other): return self + -other
    def __truediv__(self, other): return self * other ** -1
    def __radd__(self, other): return self + other
    def __rmul__(self, other): return self * other
    def __rsub__(self, other): return -self + other
    def __rtruediv__(self, other): return self ** -1 * other
    def __rpow__(self, other): return Value(other) ** self

    def graph(self):
        """This Value and all that it was computed from, without the leaves, youngest first."""
        found, new = set(), {self} if self.inputs else set()
        while new:                                     # back and back, until there is nothing new
            found |= new
            behind = set().union(*[values for value in new for values, _ in value.inputs])
            new = {value for value in behind - found if value.inputs}
        return sorted(found, key=attrgetter('birth'), reverse=True)

    def backward(self):
        """Add to the grad of each leaf the derivative of this Value by it (set it to 0 before)."""
        graph = self.graph()
        for value in graph:
            value.grad = 0.0
        self.grad += 1.0                               # += because it may itself be a leaf
        for value in graph:
            if grad := value.grad:                     # zero would hand on nothing but zeros
                for values, slopes in value.inputs:
                    for source, slope in zip(values, slopes):
                        source.grad += slope * grad

# %% Part I, chapter 4: Values with many inputs ---------------------------------------------------
# A model is mostly weighted sums, w1 * x1 + w2 * x2 + ... + w16 * x16. The operators above would
# make 31 Values of it, 16 products and 15 sums. But the chain rule asks only for the slope of each
# input: if w1 grows by 1, the whole sum grows by x1; if x1 does, it grows by w1. The small sums on
# the way have slope 1 and change nothing. So it may as well be one Value with 32 inputs: the same
# gradients, many times faster.
# These functions, and the whole model, also take plain floats for Values. With Values they leave
# the trail that backward() follows; with floats they only compute, which will do after training.
# A remark like (n_out, n_in) tells the shape: a list of n_out rows, each a list of n_in numbers.
def numbers(x): return [value.data for value in x] if isinstance(x[0], Value) else x
def add(x, y): return [x_i + y_i for x_i, y_i in zip(x, y)]
def exp(x): return x.exp() if isinstance(x, Value) else math.exp(x)
def relu(x): return x.relu() if isinstance(x, Value) else max(x, 0.0)

def linear(x, rows):
    """For each row of weights, the sum of x weighted by it. x: (n_in,), rows: (n_out, n_in)"""
    if not isinstance(x[0], Value): return [sum(map(mul, row, x)) for row in rows]
    x_data, rows_data = numbers(x), map(numbers, rows)
    return [Value(sum(map(mul, row_data, x_data)), 'dot', (row, x_data), (x, row_data))
            for row, row_data in zip(rows, rows_data)]

def total(x):
    """The sum of a list, as one Value."""
    return Value(sum(numbers(x)), 'sum', (x, [1.0] * len(x))) if isinstance(x[0], Value) else sum(x)

# %% Part I, chapter 5: Parameters ----------------------------------------------------------------
# A token is a place in the alphabet; its size says nothing. So each token gets a list of n_embd
# numbers to describe it, its *embedding*, and so does each position. Nobody writes these lists: all
# parameters are drawn at random, and training makes sense of them (one number may come to say
# "vowel"). At random, because sums with equal weights would find the same, be corrected alike, and
# stay equal; small, so that all predictions are about even at first. Their customary names:
#     wte, wpe        word (here: letter) token and position embedding: a row for each
#     lm_head         language model head: a row for each token, which scores it as the next one
#     attn_wq/k/v/o   in each layer, for attention (chapter 7): query, key, value, output
#     mlp_fc1, _fc2   in each layer, for the MLP (chapter 7), "multi-layer perceptron", an old name;
#                     "fully connected": each result is a weighted sum of all the inputs
class Config(NamedTuple):
    """The sizes of a model, a matter of taste: larger learns more and takes longer."""
    n_layer: int = 1       # layers of attention and MLP, each refining the work of the one before
    n_embd: int = 16       # numbers that describe a token at its position; a multiple of n_head
    n_head: int = 4        # heads, the parallel searches of attention (no relation of lm_head)
    block_size: int = 16   # positions; of a longer document only the beginning is used

def shapes(config, vocab_size):
    """The shape (n_out, n_in) of each parameter matrix. vocab_size: the number of tokens."""
    n = config.n_embd
    shapes = {'wte': (vocab_size, n), 'wpe': (config.block_size, n), 'lm_head': (vocab_size, n)}
    for i in range(config.n_layer):
        for name in ('attn_wq', 'attn_wk', 'attn_wv', 'attn_wo'):
            shapes[f'layer{i}.{name}'] = (n, n)
        shapes[f'layer{i}.mlp_fc1'] = (4 * n, n)       # 4 times wider and back: custom, so taste
        shapes[f'layer{i}.mlp_fc2'] = (n, 4 * n)
    return shapes

def new_model(shapes, number):
    """A dict of matrices, lists of rows of Values. number: a function that returns the next one."""
    return {name: [[Value(number()) for _ in range(n_in)] for _ in range(n_out)]
            for name, (n_out, n_in) in shapes.items()}

def parameters(model):
    """All parameters in one flat list, in the order in which they were drawn."""
    return [value for matrix in model.values() for row in matrix for value in row]

# %% Part I, chapter 6: Two tools: softmax and the norm -------------------------------------------
# softmax turns scores, which may be any numbers, into probabilities: positive, and together 1.
# exp() makes each score positive, and turns *differences* of scores into *ratios*: one point more
# is always e = 2.7 times as likely. Taking the highest score off them all changes no difference, so
# no ratio, but it keeps us from exp(800), too large a number for a float: the largest is exp(0).
# The highest is a plain number, outside the graph: what changes nothing needs no gradient.
# rmsnorm scales a list so that the mean of its squares is 1 (RMS: root mean square). Weights suit
# numbers of a certain magnitude, and serve every x only if all x have the same. The 1e-5 (any tiny
# number would do) keeps a list of zeros from dividing by zero.
def softmax(scores):
    """Probabilities (n,) from scores (n,)."""
    highest = max(numbers(scores))
    ratios = [exp(score - highest) for score in scores]
    share = total(ratios) ** -1
    return [ratio * share for ratio in ratios]

def rmsnorm(x):
    """x (n,), scaled to a mean square of 1."""
    mean_square = linear(x, [x])[0] / len(x)           # x weighted by x is the sum of its squares
    scale = (mean_square + 1e-5) ** -0.5
    return [x_i * scale for x_i in x]

# %% Part I, chapter 7: The model -----------------------------------------------------------------
# gpt() reads one token and scores every token as the next. Think of x, n_embd numbers, as a notepad
# for this position. It begins as what the token is plus where it stands. Each layer adds two notes.
# Attention fetches from the positions read so far, this one included. From x come three lists: a
# *query*, what this position looks for; a *key*, what it can be found by; a *value*, what it hands
# over when found. How well a query fits the key of a position is the sum of their products. These
# scores go through softmax, and the note is the mean of all values, weighted by the result. Several
# heads do so at once, each with its own part of the lists. One search gives one mean; with several,
# one may look for the last vowel and another for the first letter. attn_wo mixes what the heads
# found, so that any of it can be noted anywhere.
#
# The MLP thinks over what is on the notepad, each position by itself. Attention only averages; the
# MLP can decide. Each of the sums of fc1 looks for a pattern: it is large if x is large in the same
# places as its weights. relu silences those not above zero, and fc2 makes the note from the rest.
# Without relu, sums of sums would be just sums again, without any "if".
#
# Why added to the notepad, and not put in its place? In a sum each term has slope 1: gradients come
# back through all layers unweakened, and a layer that has not learnt anything yet erases nothing.
# But notes pile up, so attention and MLP each read a normed copy. (The notepad is itself normed
# only at its start, and lm_head reads it as it is. GPTs differ in this: taste.)
def new_cache(config):
    """What is kept of the positions read: for each layer and head, lists of keys, of values (later
    positions need both; a query has done its work) and of weights (only for us to look at)."""
    return [[([], [], []) for _ in range(config.n_head)] for _ in range(config.n_layer)]

def attention(x, model, layer, heads):
    """The note (n_embd,) on what x (n_embd,) looks for. heads: this layer's part of the cache."""
    query, key, value = [linear(x, model[f'{layer}.attn_w{letter}']) for letter in 'qkv']
    head_dim = len(x) // len(heads)                    # how many numbers each head has
    found = []
    for h, (keys, values, kept_weights) in enumerate(heads):
        part = slice(h * head_dim, (h + 1) * head_dim)
        keys.append(key[part])                         # (positions, head_dim). The future cannot be
        values.append(value[part])                     # seen: it is not in these lists yet
        scores = linear(query[part], keys)             # (positions,)
        # Squared, a sum of n products of random sign is about n squares, as mixed terms cancel: it
        # grows as sqrt(n). Undivided, one weight nears 1, the rest 0: softmax is flat, no slope.
        weights = softmax([score / head_dim ** 0.5 for score in scores])
        kept_weights.append(numbers(weights))
        columns = list(zip(*values))                   # (head_dim, positions): values, transposed
        found += linear(weights, columns)              # (head_dim,): the weighted mean of values
    return linear(found, model[f'{layer}.attn_wo'])

def mlp(x, model, layer):
    """The note (n_embd,) on what follows from x (n_embd,)."""
    patterns = [relu(pattern) for pattern in linear(x, model[f'{layer}.mlp_fc1'])]
    return linear(patterns, model[f'{layer}.mlp_fc2'])

def gpt(model, token, position, cache):
    """The score of each token as the next one, (vocab_size,). These scores are called logits."""
    # n_embd numbers have room for both: training can let some tell of the token, some of the place.
    x = rmsnorm(add(model['wte'][token], model['wpe'][position]))
    for i, heads in enumerate(cache):
        x = add(x, attention(rmsnorm(x), model, f'layer{i}', heads))
        x = add(x, mlp(rmsnorm(x), model, f'layer{i}'))
    return linear(x, model['lm_head'])

# %% Part I, chapter 8: The loss ------------------------------------------------------------------
# We look up the probability p that the model gave to the token that really came, and take -log(p):
# 0 for p = 1, 0.7 for 1/2, 2.3 for 1/10, and without limit towards 0. Why the log? A name is as
# likely as the *product* of its letters' probabilities, and logs make a *sum* of it: the lower the
# mean loss, the likelier the name. Untrained, each of 27 tokens gets about 1/27: -log(1/27) = 3.3.
def cross_entropy(logits, target):
    """That loss as one Value. target: the token that came. Its slopes: -log(exp(target's logit) /
    total of all exps) = log(total) - target's logit, and the derivative of this by any logit is
    exp(that logit) / total, which is that token's probability; less 1 for the target."""
    p = softmax(numbers(logits))
    loss = -math.log(p[target] or 5e-324)              # the smallest float, for log(0) is none
    if not isinstance(logits[0], Value): return loss
    return Value(loss, 'cross_entropy', (logits, p[:target] + [p[target] - 1] + p[target + 1:]))

def document_losses(model, config, tokens):
    """The loss of every prediction of a document, of which there are block_size at most."""
    cache, losses = new_cache(config), []
    for position in range(min(config.block_size, len(tokens) - 1)):
        logits = gpt(model, tokens[position], position, cache)
        losses.append(cross_entropy(logits, tokens[position + 1]))
    return losses

def document_gradients(model, config, tokens):
    """The mean loss of a document, a number, and its gradient by each of parameters(model)."""
    params = parameters(model)
    for p in params: p.grad = 0.0                      # else gradients of documents would add up
    losses = document_losses(model, config, tokens)
    loss = total(losses) / len(losses)
    loss.backward()
    return loss.data, [p.grad for p in params]

# %% Part I, chapter 9: From gradients to better parameters ---------------------------------------
# The plain way is p -= rate * gradient: downhill. *Adam* (Kingma and Ba, 2014) mends two things.
# One name's gradient g is a hint full of noise. So Adam follows m, a running mean: at each step it
# keeps 0.85 of itself and takes in 0.15 of g, and noise cancels out. And some gradients are 100
# times others: no one rate suits all. So m is divided by the root of v, a running mean of g * g: by
# the usual size of g. The quotient is near 1 or -1 where gradients agree, near 0 where they do not;
# times `rate`, it is the step. But m begins at 0, and in n steps takes in a share of 1 - 0.85 ** n
# in all. Divided by this share it is a true mean, written m̂, "m hat"; and so with v and v̂.
class Adam:
    """m and v (in statistics: moments) of each of params, a list of Values; and the steps made."""
    beta1, beta2, eps = 0.85, 0.99, 1e-8       # taste; eps only prevents dividing by zero
    def __init__(self, params):
        self.params, self.m, self.v, self.step = params, [0.0] * len(params), [0.0] * len(params), 0

    def update(self, gradients, rate):
        """One step: change the data of each parameter, mostly by `rate` or less."""
        b1, b2, eps, self.step = self.beta1, self.beta2, self.eps, self.step + 1
        self.m = [b1 * m + (1 - b1) * g for m, g in zip(self.m, gradients)]
        self.v = [b2 * v + (1 - b2) * g * g for v, g in zip(self.v, gradients)]
        m_share, v_share = 1 - b1 ** self.step, 1 - b2 ** self.step
        for p, m, v in zip(self.params, self.m, self.v):
            p.data -= rate * (m / m_share) / ((v / v_share) ** 0.5 + eps)

# %% Part I, chapter 10: Training -----------------------------------------------------------------
# A document, its gradients, a small step; a thousand times. The rate falls to zero meanwhile: long
# steps to get near, short ones to settle. (Rate, its fall and the number of steps are taste.)
def train(adam, gradients_at, steps, learning_rate=0.01, decay=lambda progress: 1 - progress):
    """Train until `steps` steps are made; a generator of (step, loss) after each of them.
    gradients_at: a function of the number of steps made, which returns a loss and its gradients."""
    collecting = gc.isenabled()
    gc.disable()                       # it looks for reference cycles; Values never form one
    try:
        while adam.step < steps:
            rate = learning_rate * decay(adam.step / steps)
            loss, gradients = gradients_at(adam.step)
            adam.update(gradients, rate)
            yield adam.step, loss
    finally:
        if collecting: gc.enable()

# %% Part I, chapter 11: Sampling -----------------------------------------------------------------
# To write, the model plays the game with itself: from BOS on it predicts, a token is drawn by its
# probabilities and read as the next, until BOS is drawn. (Always taking the likeliest token would
# write one name for ever.) Before softmax all scores are divided by a *temperature*: below 1, their
# differences widen, and the likely becomes likelier; above 1, unlikely tokens get their chance.
def draw(logits, rng, temperature=0.5):                # 0.5: taste
    """One token, drawn by chance according to its logits."""
    probabilities = softmax([logit / temperature for logit in logits])
    return rng.choices(range(len(logits)), weights=probabilities)[0]

def plain(model):
    """The model with floats for Values. What it computes leaves no trail, and is faster."""
    return {name: [numbers(row) for row in matrix] for name, matrix in model.items()}

def sample(model, config, choose, prompt=()):
    """The tokens of a new document, without BOS, at most block_size. choose: a function from logits
    to a token. prompt: tokens to begin with; they are read like the others, but not chosen."""
    bos = len(model['wte']) - 1
    tokens, cache = [bos], new_cache(config)
    for position in range(config.block_size):
        logits = gpt(model, tokens[position], position, cache)
        token = prompt[position] if position < len(prompt) else choose(logits)
        if token == bos: break
        tokens.append(token)
    return tokens[1:]

# %% Part I, chapter 12: Everything together ------------------------------------------------------
def run(path='input.txt', steps=1000, samples=20, seed=42, config=Config()):
    """Train on the documents in a file, then print ones that it makes up. Steps, samples: taste."""
    rng = random.Random(seed)
    docs = load_docs(path)
    rng.shuffle(docs)
    chars = alphabet(docs)
    model = new_model(shapes(config, len(chars) + 1), lambda: rng.gauss(0, 0.08))     # 0.08: taste
    def gradients_at(step):
        return document_gradients(model, config, encode(docs[step % len(docs)], chars))
    for step, loss in train(Adam(parameters(model)), gradients_at, steps):
        if step % 100 == 0: print(f'step {step:4} / {steps} | loss {loss:.4f}')
    trained = plain(model)
    for _ in range(samples):
        tokens = sample(trained, config, lambda logits: draw(logits, rng))
        print(''.join(chars[token] for token in tokens))

# %% Part II, chapter 13: Options -----------------------------------------------------------------
# A table of all options: name, group (with a star if checkpoints keep it), default, type, help.
import argparse, array, collections, contextlib, csv, datetime, hashlib, json, multiprocessing
import operator, os, shutil, signal, statistics, struct, sys, threading, time, types, unicodedata
from multiprocessing.connection import wait

class Problem(argparse.ArgumentTypeError): """What the user can mend: a line, an exit status."""
def say(text, end='\n'):
    with contextlib.suppress(OSError): print(text, file=sys.stderr, end=end, flush=True)
def FILE(text): return text
def TEXT(text): return text
def usable(doubles): return all(-1e30 < x < 1e30 for x in doubles)
def flag(name): return '--' + name.replace('_', '-')
def config_of(settings): return Config(*(settings[name] for name in Config._fields))

def number(kind, low, high=10 ** 12):
    """A function that turns an argument into an int or float from low to high."""
    def convert(text):
        value = kind(text)
        if low <= value <= high and value != math.inf: return value
        raise Problem(f'{text} is not from {low} to {high}')
    convert.__name__ = 'N' if kind is int else 'X'
    return convert

N, SIZE, X, SHARE = number(int, 0), number(int, 1), number(float, 0, math.inf), number(float, 0, 1)
DECAYS = {'linear': lambda progress: 1 - progress, 'constant': lambda progress: 1.0,
          'cosine': lambda progress: (1 + math.cos(math.pi * progress)) / 2}
OPTIONS = {name: row for name, *row in (
    ('data', 'data*', None, FILE, 'file of documents, one a line (input.txt)'),
    ('val_fraction', 'data*', 0.1, SHARE, 'held out of training'),
    ('n_layer', 'model*', 1, SIZE, 'layers'),
    ('n_embd', 'model*', 16, SIZE, 'numbers that describe a token'),
    ('n_head', 'model*', 4, SIZE, 'attention heads'),
    ('block_size', 'model*', 16, SIZE, 'positions'),
    ('seed', 'model*', 42, N, 'where all chance comes from'),
    ('steps', 'training*', 1000, N, 'training steps in all'),
    ('batch_size', 'training*', 1, SIZE, 'documents in a step'),
    ('learning_rate', 'training*', 0.01, X, 'at the first step'),
    ('decay', 'training*', 'linear', DECAYS, 'how the rate falls'),
    ('grad_clip', 'training*', 0.0, X, 'largest norm of the gradient; 0: any'),
    ('epochs', 'running', None, N, 'rounds through the data, in place of steps'),
    ('workers', 'running', 1, N, 'processes for a batch; 0: one per core'),
    ('load', 'running', None, FILE, 'checkpoint to go on from'),
    ('save', 'running', None, FILE, 'checkpoint to write after training'),
    ('save_every', 'running', 0, N, 'and after every so many steps; 0: never'),
    ('log', 'running', None, FILE, 'CSV of step, loss, learning rate'),
    ('samples', 'sampling*', 20, N, 'names to make up'),
    ('temperature', 'sampling*', 0.5, X, '0: no chance; 1: as learnt; more: wilder'),
    ('top_k', 'sampling*', 0, N, 'draw from the k likeliest only; 0: all'),
    ('top_p', 'sampling*', 1.0, SHARE, 'draw from the likeliest with p in all only'),
    ('prompt', 'sampling*', '', TEXT, 'beginning of every name'),
    ('min_length', 'sampling*', 0, N, 'no shorter names'),
    ('max_length', 'sampling*', None, N, 'no longer names'),
    ('alphabetic', 'sampling*', False, bool, 'names of letters only'),
    ('unique', 'sampling*', False, bool, 'no name twice'),
    ('novel', 'sampling*', False, bool, 'no name of the data'),
    ('inspect', 'pictures', None, TEXT, 'what the model makes of a text'),
    ('chart', 'pictures', False, bool, 'losses, even if not on a terminal'))}
KEPT = {name: default for name, (group, default, *_) in OPTIONS.items() if '*' in group}

def parse(argv):
    """The options given in a list of arguments, and no others, as a dict."""
    parser = argparse.ArgumentParser(
        usage='python %(prog)s [options]', argument_default=argparse.SUPPRESS, allow_abbrev=False,
        epilog='example: python microgpt.py --steps 2000 --save names.safetensors --novel')
    def error(message): raise Problem(message)
    parser.error = error
    groups = {group: parser.add_argument_group(group.strip('*')) for group, *_ in OPTIONS.values()}
    for name, (group, default, kind, help) in OPTIONS.items():
        how = ({'action': 'store_true'} if kind is bool else {'choices': kind} if kind is DECAYS
               else {'type': kind, 'metavar': kind.__name__})
        shown = '' if str(default) in ('None', 'False', '') else f' ({default})'
        groups[group].add_argument(flag(name), help=help + shown, **how)
    return vars(parser.parse_args(argv))

# %% Part II, chapter 14: Files that survive ------------------------------------------------------
def write_whole(path, data):
    """Write bytes to a file so that, whatever happens, it holds all of the old ones or the new."""
    path = os.path.realpath(path)
    try:
        with open(path + '.new', 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(path + '.new', path)
    finally:
        with contextlib.suppress(OSError): os.remove(path + '.new')

NAMES_URL = 'https://raw.githubusercontent.com/karpathy/makemore/master/names.txt'
def find_data(download):
    """The path of input.txt: here, or beside the script, or else downloaded to here."""
    for folder in ['', *([os.path.dirname(__file__)] if '__file__' in globals() else [])]:
        path = os.path.join(folder, 'input.txt')
        if os.path.exists(path): return path
    if not download: return path
    import http.client, urllib.request                 # slow to import, and seldom needed
    say(f'no input.txt: downloading {NAMES_URL}')
    try:
        with urllib.request.urlopen(NAMES_URL, timeout=20) as answer:
            write_whole('input.txt', answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise Problem(f'no input.txt, and no download ({error}): give a text file with --data FILE')
    return 'input.txt'

def read_docs(path, chars):
    """load_docs(); a Problem if the file is not text, is empty, or has characters not in chars."""
    try: docs = load_docs(path)
    except UnicodeDecodeError: raise Problem(f'{path}: not text in UTF-8')
    if not docs or '\0' in ''.join(docs): raise Problem(f'{path}: empty, or binary')
    check(''.join(docs), chars or alphabet(docs))
    return docs

def check(text, chars):
    """A Problem that names the characters of a text which are not in the vocabulary."""
    foreign = ''.join(sorted(set(text) - set(chars)))
    if foreign: raise Problem(f'not in the vocabulary of the model: {foreign[:40]!r}')

# A checkpoint is a safetensors file: length of the header, header, numbers. Its metadata hold all
# that it takes to go on, and a SHA-256 of the whole file, computed with NO_HASH in its place.
NO_HASH, VERSION, LOG = b'0' * 64, 'microgpt 1', 'step,loss,learning_rate\n'
def layout(settings, chars):
    """The header's entry of each tensor, in the order of the numbers, and their size in bytes."""
    entries, end = {}, 0
    for prefix in ('', 'adam.m.', 'adam.v.'):
        for name, shape in shapes(config_of(settings), len(chars) + 1).items():
            at, end = end, end + 8 * shape[0] * shape[1]
            entries[prefix + name] = {'dtype': 'F64', 'shape': [*shape], 'data_offsets': [at, end]}
    return entries, end

def save_checkpoint(path, settings, chars, adam, rng):
    """Write all that a run consists of. An OSError leaves the file as it was."""
    entries, size = layout(settings, chars)
    metadata = {'sha256': NO_HASH.decode(), 'version': VERSION, 'vocabulary': chars,
                'settings': json.dumps({name: settings[name] for name in KEPT}),
                'step': str(adam.step), 'random': json.dumps(rng.getstate())}
    header = json.dumps({'__metadata__': metadata, **entries}).encode()
    header += b' ' * (-len(header) % 8)
    doubles = struct.pack(f'<{size // 8}d', *numbers(adam.params), *adam.m, *adam.v)
    whole = struct.pack('<Q', len(header)) + header + doubles
    write_whole(path, whole.replace(NO_HASH, hashlib.sha256(whole).hexdigest().encode(), 1))

def load_checkpoint(path):
    """(settings, chars, model, adam, rng) from a file; a Problem if anything about it is wrong."""
    def ensure(fact, otherwise):
        if not fact: raise ValueError(otherwise)
    if not os.path.isfile(path): raise Problem(f'{path}: no such file')
    with open(path, 'rb') as file: whole = file.read()
    try:
        start = 8 + int.from_bytes(whole[:8], 'little')
        ensure(8 < start <= len(whole), 'not safetensors: the header is longer than the file')
        entries = json.loads(whole[8:start])
        metadata = entries.pop('__metadata__')
        ensure(metadata['version'] == VERSION, f'version {metadata["version"]} is unknown')
        settings, chars = json.loads(metadata['settings']), metadata['vocabulary']
        given = parse([flag(name) + f'={settings[name]}' * (settings[name] is not True)
                       for name in KEPT if not any(settings[name] is no for no in (None, False))])
        ensure(settings == {**KEPT, **given} and chars == alphabet(chars), 'impossible settings')
        config = config_of(settings)
        ensure(config.n_layer < start and config.n_embd % config.n_head == 0, 'impossible sizes')
        expected, size = layout(settings, chars)
        for name in {**expected, **entries}:
            ensure(entries.get(name) == expected.get(name), f'tensor {name} is not as it should be')
        ensure(len(whole) == start + size, 'cut off, or too long')
        digest = metadata['sha256'].encode()
        ensure(hashlib.sha256(whole.replace(digest, NO_HASH, 1)).hexdigest().encode() == digest,
               'damaged: the SHA-256 is another')
        doubles = struct.unpack(f'<{size // 8}d', whole[start:])
        n, rng = len(doubles) // 3, random.Random()
        ensure(usable(doubles) and min(doubles[2 * n:]) >= 0, 'numbers are nan or beyond reason')
        model = new_model(shapes(config, len(chars) + 1), iter(doubles).__next__)
        adam = Adam(parameters(model))
        adam.m, adam.v, adam.step = doubles[n:2 * n], doubles[2 * n:], N(metadata['step'])
        version, state, gauss = json.loads(metadata['random'])
        rng.setstate((version, tuple(state), gauss))
        return settings, chars, model, adam, rng
    except (Problem, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
            RecursionError) as error:
        raise Problem(f'{path}: not a usable checkpoint: {error!s:.200}')

# %% Part II, chapter 15: Looking inside ----------------------------------------------------------
def graphviz(value, limit=2000):
    """The graph behind a Value as Graphviz DOT text, leaves as boxes (ValueError above limit)."""
    edges = [(source, result) for result in value.graph()[::-1]
             for values, _ in result.inputs for source in values]
    ids = {v: i for i, v in enumerate(dict.fromkeys([*itertools.chain(*edges), value]))}
    if len(ids) > limit: raise ValueError(f'{len(ids)} nodes are too many to draw: {limit} at most')
    nodes = [f'  {i} [label="{v.op or "leaf"}\\ndata {v.data:.4g}\\ngrad {v.grad:.4g}"' +
             ', shape=box, style=filled' * (not v.inputs) + '];' for v, i in ids.items()]
    arrows = [f'  {ids[source]} -> {ids[result]};' for source, result in edges]
    return '\n'.join(['digraph {', '  rankdir=LR;', *nodes, *arrows, '}'])

def cells(text): return sum(1 + (unicodedata.east_asian_width(char) in 'WF') for char in text)
def right(text, size): return ' ' * (size - cells(text)) + text
def visible(char, blocks):                             # in a form that can be counted in columns
    if not blocks or not char.isprintable(): return ascii(char)[1:-1].replace(' ', '_')
    return '◌' + char if unicodedata.category(char)[0] == 'M' else char.replace(' ', '␣')

def picture(model, config, chars, text, size=80, blocks=True, colour=False):
    """What a model predicts and attends to in a text, as lines of `size` columns, 40 at least."""
    tokens, cache = encode(text, chars)[:config.block_size + 1], new_cache(config)
    model = plain(model)
    predictions = [softmax(gpt(model, token, i, cache)) for i, token in enumerate(tokens[:-1])]
    names = [visible(char, blocks) for char in chars] + ['¶' if blocks else '|']
    bits = [-math.log2(p[real] or 5e-324) for p, real in zip(predictions, tokens[1:])]
    shades, n = '·░▒▓█' if blocks else '.:+#@', len(predictions)
    wide = max(cells(names[token]) for token in tokens)
    column = max(4, wide)
    best = max(1, min(3, (size - 2 * column - 13) // (wide + 5)))
    room = (size - 2 * column - 13) // best - wide - 6
    yield f'{names[-1]} stands for BOS' + f'; cut to {n} of {len(text) + 1} rows' * (n <= len(text))
    yield f'{"read":>{column}} {"next":>{column}}     p  bits  likeliest'
    for read, real, p, b in zip(tokens, tokens[1:], predictions, bits):
        line = f'{right(names[read], column)} {right(names[real], column)}{p[real]:6.1%}{b:6.2f}'
        for token in sorted(range(len(p)), key=lambda token: -p[token])[:best]:
            bar = (' ' + shades[4] * math.ceil(p[token] * room)).ljust(room + 1)[:room + 1]
            item = f' {right(names[token], wide)}{p[token]:4.0%}{bar}'
            line += f'\033[1m{item}\033[0m' if colour and token == real else item
        yield line.rstrip()
    yield f'{sum(bits):.2f} bits, {sum(bits) / n:.4f} per character'
    step = 2 if wide == 1 and 2 * n + 2 <= size else wide
    shown = max(1, min(n, (size - wide - 1) // step))
    yield f'attention, {shades[0]} 0% to {shades[4]} 100%' + f'; first {shown} of {n}' * (shown < n)
    head = right('', wide) + ' ' + ''.join(right(names[token], step) for token in tokens[:shown])
    maps = [(f'L{i}H{h}', rows) for i, heads in enumerate(cache)
            for h, (_, _, rows) in enumerate(heads)]
    side_by_side = max(1, (size + 2) // (cells(head) + 2))
    for first in range(0, len(maps), side_by_side):
        group = maps[first:first + side_by_side]
        yield '  '.join(title.ljust(cells(head)) for title, _ in group).rstrip()
        yield '  '.join([head] * len(group))
        for t in range(shown):
            lines = (''.join(shades[round(4 * p)] * step for p in rows[t]) for _, rows in group)
            label = right(names[tokens[t]], wide) + ' '
            yield '  '.join(label + line.ljust(step * shown) for line in lines).rstrip()

def chart(curve, first, last, held_out, size=80, blocks=True):
    """Losses as lines of text. curve: mean losses of equal parts of the steps first to last."""
    dot, dash, side, corner = '●─│└' if blocks else '*-|+'
    n, reach = max(1, min(size - 11, len(curve))), 1 + len(curve) // 20
    smooth = [statistics.fmean(curve[max(0, i - reach):i + 1]) for i in range(len(curve))]
    points = [smooth[i * len(curve) // n] for i in range(n)]
    levels = points + [held_out] * (held_out is not None)
    low, height = min(levels), (max(levels) - min(levels)) / 9 or 1
    for row in range(9, -1, -1):
        level = dash if held_out is not None and round((held_out - low) / height) == row else ' '
        line = ''.join(dot if round((point - low) / height) == row else level for point in points)
        yield f'{low + row * height:8.4f} {side}{line}'.rstrip()
    yield f'    step {corner}{dash * n}'
    yield f'{first:>11}{last:>{max(2, n - 1)}}'
    yield f'{dot} training loss' + f'  {dash} held-out loss' * (held_out is not None)

# %% Part II, chapter 16: All the cores -----------------------------------------------------------
def work(pipe, config, vocab_size):
    """A worker process: from parameters and documents to gradients, until its parent ends."""
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: wait([parent]) and os._exit(1), daemon=True).start()
    gc.disable()
    model = new_model(shapes(config, vocab_size), float)
    with contextlib.suppress(EOFError, OSError):
        while True:
            data, place, tokens = pipe.recv()
            for p, x in zip(parameters(model), array.array('d', data)): p.data = x
            loss, gradients = document_gradients(model, config, tokens)
            pipe.send_bytes(array.array('d', [place, loss, *gradients]))

def start_workers(n, config, vocab_size):              # the pipes to n new processes
    context, pipes = multiprocessing.get_context('spawn'), []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)          # Ctrl-C is for the parent alone
    for _ in range(n):
        mine, theirs = context.Pipe()
        context.Process(target=work, args=(theirs, config, vocab_size), daemon=True).start()
        theirs.close()
        pipes.append(mine)
    signal.signal(signal.SIGINT, before)
    return pipes

def shared_gradients(pipes, params, batch):
    """document_gradients() of each list of tokens in batch, in this order, from the workers."""
    data, results = array.array('d', numbers(params)).tobytes(), {}
    todo = sorted(enumerate(batch), key=lambda item: len(item[1]))     # its end, the longest, first
    try:
        for pipe in pipes: pipe.send((data, *todo.pop()))
        for pipe in pipes[:len(todo)]: pipe.send((b'', *todo.pop()))     # to work on without a wait
        while len(results) < len(batch):
            for pipe in wait(pipes):
                place, loss, *gradients = array.array('d', pipe.recv_bytes())
                results[place] = loss, gradients
                if todo: pipe.send((b'', *todo.pop()))
    except (EOFError, OSError): raise Problem('a worker process has died', 1)
    return [results[place] for place in range(len(batch))]

# %% Part II, chapter 17: Training and sampling under control -------------------------------------
def screen():
    """The columns of the terminal at stderr, or 80, and whether its encoding has all characters."""
    size = os.get_terminal_size(2) if sys.stderr.isatty() else shutil.get_terminal_size()
    return min(size.columns or 80, 1000), (sys.stderr.encoding or '').lower().startswith('utf')

def mean(results):                                     # of (loss, gradients), in their order
    losses, gradients = zip(*results)
    n, sums = len(losses), map(sum, zip(*gradients)) if len(losses) > 1 else gradients[0]
    return sum(losses) / n, [entry / n for entry in sums]

def choose(logits, s, rng):
    """draw(), from the tokens that s.top_k and s.top_p (Holtzman et al., 2019) leave."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
    if s.temperature < 1e-6: return ranked[0]
    kept = ranked[:s.top_k or None]
    if s.top_p < 1:
        sums = itertools.accumulate(softmax([logits[token] / s.temperature for token in kept]))
        kept = kept[:1 + sum(p < s.top_p for p in sums)]
    for token in ranked[len(kept):]: logits[token] = -math.inf
    return draw(logits, rng, s.temperature)

def dream(s, model, config, chars, rng, known):
    """Names as the options want them, one by one; says what is missing where they are too rare."""
    model, prompt = plain(model), encode(s.prompt, chars)[1:-1]
    names, refused, found = set(), collections.Counter(), 0
    for _ in range(max(1000, 100 * s.samples)):
        if found == s.samples: return
        tokens = sample(model, config, lambda logits: choose(logits, s, rng), prompt)
        name = ''.join(chars[token] for token in tokens)
        faults = {'min_length': len(name) < s.min_length, 'novel': s.novel and name in known,
                  'max_length': s.max_length is not None and len(name) > s.max_length,
                  'alphabetic': s.alphabetic and not name.isalpha(), 'unique': name in names}
        why = next((fault for fault in faults if faults[fault]), '')
        refused[why] += 1
        if why: continue
        if s.unique: names.add(name)
        found += 1
        yield name
    if found < s.samples:
        say(f'{s.samples - found} names are missing: too many were refused, ' +
            ', '.join(f'{count} by {flag(why)}' for why, count in refused.most_common() if why))

def fit(s, model, config, adam, docs, chars, save):
    """Train as the options say. Returns the curve for chart(), the running loss, if Ctrl-C came."""
    n_workers = min(s.workers or os.cpu_count(), s.batch_size) if '__file__' in globals() else 1
    pipes = start_workers(n_workers, config, len(chars) + 1) if n_workers > 1 else []
    def gradients_at(step):
        places = range(step * s.batch_size, (step + 1) * s.batch_size)
        batch = [encode(docs[i % len(docs)], chars)[:s.block_size + 1] for i in places]
        loss, gradients = mean(shared_gradients(pipes, adam.params, batch) if pipes else
                               [document_gradients(model, config, tokens) for tokens in batch])
        if not math.isfinite(loss):
            raise Problem(f'step {step + 1}: the loss is {loss}; try a lower --learning-rate', 1)
        norm = math.sqrt(sum(g * g for g in gradients)) if s.grad_clip else 0.0
        if norm > s.grad_clip: gradients = [g * s.grad_clip / norm for g in gradients]
        return loss, gradients
    pressed = []
    def on_interrupt(*_):                              # the first Ctrl-C lets the step be finished
        if pressed: raise KeyboardInterrupt
        pressed.append(True)
    first, decay, recent, parts = adam.step, DECAYS[s.decay], [], [[0, 0] for _ in range(400)]
    began, shown, terminal = time.perf_counter(), -1.0, sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, on_interrupt))
        for pipe in pipes: stack.callback(pipe.close)
        if s.log:                                      # going on, keep what was logged up to here
            rows = [row for row in s.logged
                    if row.split(',')[0].zfill(13) <= str(first).zfill(13) and row[-1] == '\n']
            write_whole(s.log, ''.join([LOG, *rows]).encode())
            log = csv.writer(stack.enter_context(open(s.log, 'a', 1)), lineterminator='\n')
        for step, loss in train(adam, gradients_at, s.steps, s.learning_rate, decay):
            if s.log: log.writerow([step, loss, s.learning_rate * decay((step - 1) / s.steps)])
            recent = recent[-99:] + [loss]
            part = parts[(step - first - 1) * 400 // (s.steps - first)]
            part[:] = part[0] + loss, part[1] + 1
            now, end = time.perf_counter(), step == s.steps or pressed
            if end or (now > shown + 0.05 if terminal else step % 100 == 0 or step == first + 1):
                shown, speed = now, (step - first) / (now - began)
                mean_loss = sum(recent) / len(recent)
                line = (f'step {step:{len(str(s.steps))}} / {s.steps} | loss {loss:.4f} | mean '
                        f'{mean_loss:.4f} | {speed:.3g} steps/s | '
                        f'{datetime.timedelta(seconds=int((s.steps - step) / speed))} left')
                bar = '#' * (6 * step // s.steps)
                if terminal: line = f'\r\033[K{bar:.<6} {line[5:]}'[:screen()[0] + 3]
                say(line, end='' if terminal and not end else '\n')
            if s.save_every and step % s.save_every == 0 and not end: save()
            if pressed: break
    return [total / n for total, n in parts if n], mean_loss, pressed

# %% Part II, chapter 18: The program -------------------------------------------------------------
def pipeline(argv):
    """Get a model, train it, save it, judge it, look into it and sample from it."""
    given = parse(argv)
    kept, chars, model, adam, rng = (
        load_checkpoint(given['load']) if 'load' in given else ({}, None, None, None, None))
    settings = {**{name: row[1] for name, row in OPTIONS.items()}, **kept, **given}
    config, s = config_of(settings), types.SimpleNamespace(**settings, logged=[])
    wrong = [flag(name) for name in Config._fields if kept and settings[name] != kept[name]]
    if wrong: raise Problem(f'{wrong[0]} contradicts the model in {s.load}')
    if s.n_embd % s.n_head: raise Problem('--n-embd is not a multiple of --n-head')
    if {'steps', 'epochs'} <= given.keys(): raise Problem('--steps and --epochs: one or the other')
    needs_data = not kept or adam.step < s.steps or s.novel or {'data', 'epochs'} & given.keys()
    data = s.data or find_data(needs_data)             # only for sampling, it can be done without
    docs = read_docs(data, chars) if needs_data or os.path.isfile(data) else []
    if kept: s.seed = settings['seed'] = kept['seed']  # the same order of documents as before
    shuffler = random.Random(s.seed)
    shuffler.shuffle(docs)
    if not kept:
        rng, chars = shuffler, alphabet(docs)
        model = new_model(shapes(config, len(chars) + 1), lambda: rng.gauss(0, 0.08))
        adam = Adam(parameters(model))
    elif 'seed' in given: rng.seed(given['seed'])
    known, n_docs = set(docs), len(docs)
    n_train = n_docs - max(0, min(int(s.val_fraction * n_docs), n_docs - 1))
    docs, held_out = docs[:n_train], docs[n_train:]
    if s.epochs is not None: settings['steps'] = s.steps = -(-s.epochs * len(docs) // s.batch_size)
    check(s.prompt + (s.inspect or ''), chars)
    if len(s.prompt) > s.block_size: raise Problem(f'--prompt: over {s.block_size} characters')
    paths = [os.path.realpath(path) for path in (data, s.save, s.log) if path]
    if len(set(paths)) < len(paths): raise Problem('--data, --save, --log: the same file twice')
    for path in paths[1:]:                             # better now than after hours of training
        good = os.path.isfile(path) or not os.path.exists(path)
        if not good or not os.access(os.path.dirname(path), os.W_OK):
            raise Problem(f'{path}: cannot be written there')
    if s.log and os.path.exists(s.log):
        with open(s.log, errors='replace') as file: header, *s.logged = [*file] or [LOG]
        if header != LOG: raise Problem(f'{s.log}: is there already, and is not a log')
    def save():                                        # tells whether nothing is left to be saved
        if not usable([*numbers(adam.params), *adam.m, *adam.v]):
            raise Problem(f'step {adam.step}: the model is ruined; try a lower --learning-rate', 1)
        try: return not s.save or not save_checkpoint(s.save, settings, chars, adam, rng)
        except OSError as error: say(f'microgpt: {s.save}: not saved: {error.strerror}')
    say(f'num docs: {n_docs}\nvocab size: {len(chars) + 1}\nnum params: {len(adam.params)}')
    first, curve, pressed, held_out_loss = adam.step, [], False, None
    if first < s.steps: curve, running, pressed = fit(s, model, config, adam, docs, chars, save)
    saved = save()
    if pressed: raise Problem(f'stopped by Ctrl-C after step {adam.step}', 130)
    if held_out:
        trained, held_out = plain(model), held_out[:500]
        held_out_loss = statistics.fmean(loss for doc in held_out for loss in
                                         document_losses(trained, config, encode(doc, chars)))
        say(f'held-out loss {held_out_loss:.4f} nats per token ({len(held_out)} documents)' +
            (f', training loss {running:.4f}' if curve else ''))
    if adam.step - first >= 10 and (s.chart or sys.stderr.isatty()):
        say('\n'.join(chart(curve, first + 1, adam.step, held_out_loss, *screen())))
    if s.inspect is not None:
        colour = sys.stderr.isatty() and not os.environ.get('NO_COLOR')
        say('\n'.join(picture(model, config, chars, s.inspect, *screen(), colour)))
    if s.samples and sys.stdout is None: raise Problem('standard output is closed')
    new = collections.Counter()
    for name in dream(s, model, config, chars, rng, known):
        print(name, flush=True)
        new[name not in known] += 1
    if new and known: say(f'{new[True]} of {sum(new.values())} names are new (not in the data)')
    return 0 if saved else 2

def main(argv=None):
    """The program; returns its exit status: 0, 1 (failed), 2 (bad input) or 130 (Ctrl-C)."""
    if sys.stderr is None: sys.stderr = open(os.devnull, 'w')
    if hasattr(sys.stdout, 'reconfigure'): sys.stdout.reconfigure(errors='backslashreplace')
    try: return pipeline(sys.argv[1:] if argv is None else argv)
    except Problem as problem: message, status = (*problem.args, 2)[:2]
    except KeyboardInterrupt: message, status = 'stopped by Ctrl-C', 130
    except MemoryError: message, status = 'out of memory', 1
    except BrokenPipeError: message, status = '', 0    # `head` has seen enough
    except OSError as error: message, status = f'{error.filename or "output"}: {error.strerror}', 2
    try: sys.stdout and sys.stdout.flush()
    except OSError: os.dup2(os.open(os.devnull, os.O_WRONLY), 1)   # or Python complains at exit
    if message: say('microgpt: ' + ''.join(char if char.isprintable() else ' ' for char in message))
    return status

if __name__ == '__main__':
    if '__file__' in globals(): sys.exit(main())
    main([])                           # in a notebook: the arguments are its kernel's, not ours
