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

Part I is the whole algorithm, the one of Andrej Karpathy's microgpt, and gives the same results to
the last digits. Part II is comfort around it: checkpoints, pictures, options.
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
        self.data = data
        self.grad = 0.0
        self.op = op
        self.inputs = inputs
        self.birth = next(Value.births)

    def __repr__(self): return f'Value(data={self.data}, grad={self.grad})'
    # All operations have one shape: Value(result, name, (inputs, their slopes)).
    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, '+', ((self, other), (1.0, 1.0)))
    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, '*', ((self, other), (other.data, self.data)))
    def __pow__(self, n):
        if isinstance(n, Value): return (self.log() * n).exp()
        return Value(self.data ** n, f'**{n}', ((self,), (n * self.data ** (n - 1),)))
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
        found, seen, groups = [], set(), [(self,)]
        for group in groups:                           # the list grows while we walk along it
            for value in group:
                if value.inputs and value not in seen:
                    seen.add(value)
                    found.append(value)
                    for values, _ in value.inputs:     # In chapter 4, many Values share one list
                        if id(values) not in seen:     # of inputs; one look at it is enough.
                            seen.add(id(values))
                            groups.append(values)
        return sorted(found, key=attrgetter('birth'), reverse=True)

    def backward(self):
        """Add to the grad of every leaf behind this Value the derivative of this Value by it."""
        graph = self.graph()
        for value in graph:
            value.grad = 0.0
        self.grad += 1.0                               # += because it may be a leaf: leaves add up
        for value in graph:
            if value.grad:                             # zero would hand on nothing but zeros
                for values, slopes in value.inputs:
                    for source, slope in zip(values, slopes):
                        source.grad += slope * value.grad

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
# A token is a mere place in the alphabet: c is not twice b. So each token gets a list of n_embd
# numbers to describe it, its *embedding*, and so does each position. Nobody writes these lists: all
# parameters are drawn at random, and training makes sense of them (one number may come to say
# "vowel"). At random, because equal rows would compute the same, be corrected alike, and stay
# equal; small, so that all predictions are about even at first. Their names are those of GPT-2:
#     wte, wpe        word token embedding, word position embedding: a row for each token, place
#     lm_head         language model head: a row for each token, which scores it as the next one
#     attn_wq/k/v/o   in each layer, for attention (chapter 7): query, key, value, output
#     mlp_fc1, _fc2   in each layer, for the MLP (chapter 7): "multi-layer perceptron", and "fully
#                     connected", which are old words for weighted sums of weighted sums

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
# is always e = 2.7 times as likely. Taking the highest score off them all changes no difference, so no
# ratio, but it keeps us from exp(800), which is too large for a float; now the largest is exp(0).
# The highest is a plain number, outside the graph: what changes nothing needs no gradient.
# rmsnorm scales a list so that the mean of its squares is 1 (RMS: root mean square). Weights suit
# numbers of a certain size, and so are of use for every x only if all come in the same size. The
# 1e-5 (any tiny number would do) keeps a list of zeros from dividing by zero.

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
# places as its weights. relu silences those that are not above zero, and fc2 makes the note from the
# rest. Without relu, sums of sums would be just sums again, without any "if".
#
# Why added to the notepad, and not put in its place? In a sum each term has slope 1: gradients come
# back through all layers unweakened, and a layer that has not learnt anything yet destroys nothing.
# But notes pile up, so attention and MLP each read a normed copy. (The notepad is itself normed only
# at its start, and lm_head reads it as it is. GPTs differ in this: taste.)

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
        # A sum of n products, some positive, some negative, grows as sqrt(n). Left so large, it
        # would drive one weight to 1 and the rest to 0, where softmax is flat: no slope to learn by.
        weights = softmax([score / math.sqrt(head_dim) for score in scores])
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
# likely as the *product* of its letters' probabilities; logs make a *sum* of it, of which we take
# the mean. An untrained model gives each of 27 tokens about 1/27: a loss near -log(1/27) = 3.3.

def cross_entropy(logits, target):
    """That loss, in nats (a bit is 0.69 nats), as one Value. target: the token that came.
    Slopes: -log(exp(logit) / total of all exps) is log(total) - logit, and its derivative by any
    logit is exp(that logit) / total, which is its probability; less 1 for the target."""
    p = softmax(numbers(logits))
    loss = -math.log(p[target]) if p[target] else math.inf
    if not isinstance(logits[0], Value): return loss
    return Value(loss, 'cross_entropy', (logits, p[:target] + [p[target] - 1] + p[target + 1:]))

def document_loss(model, config, tokens):
    """The mean loss over the predictions of a document, of which there are block_size at most."""
    cache, losses = new_cache(config), []
    for position in range(min(config.block_size, len(tokens) - 1)):
        logits = gpt(model, tokens[position], position, cache)
        losses.append(cross_entropy(logits, tokens[position + 1]))
    return total(losses) / len(losses)

def document_gradients(model, config, tokens):
    """The loss of a document (a number), and its gradient by each of parameters(model), a list."""
    params = parameters(model)
    for p in params: p.grad = 0.0                      # else gradients of documents would add up
    loss = document_loss(model, config, tokens)
    loss.backward()
    return loss.data, [p.grad for p in params]

# %% Part I, chapter 9: From gradients to better parameters ---------------------------------------
# The plain way is p -= rate * gradient: downhill. *Adam* (Kingma and Ba, 2014) mends two things.
# One name's gradient g is a hint full of noise. So Adam follows m, a running mean: at each step it
# keeps 0.85 of itself and takes in 0.15 of g, and noise cancels out. And gradients differ in size a
# hundredfold between parameters. So m is divided by the root of v, a running mean of g * g: by the
# usual size of g. The quotient is near 1 or -1 where gradients agree, near 0 where they do not;
# times `rate`, it is the step. But m begins at 0, and in n steps takes in a share of 1 - 0.85 ** n
# in all. Divided by this share it is a true mean, written m̂, "m hat"; and so with v and v̂.

class Adam:
    """m and v (in statistics: moments) of each of params, a list of Values; and the steps made."""
    beta1, beta2 = 0.85, 0.99          # the shares that m and v keep of themselves; taste
    eps = 1e-8                         # prevents dividing by zero; any tiny number would do

    def __init__(self, params):
        self.params, self.m, self.v, self.step = params, [0.0] * len(params), [0.0] * len(params), 0

    def update(self, gradients, rate):
        """One step: change the data of each parameter by about `rate` at the most."""
        b1, b2, eps, self.step = self.beta1, self.beta2, self.eps, self.step + 1
        self.m = [b1 * m + (1 - b1) * g for m, g in zip(self.m, gradients)]
        self.v = [b2 * v + (1 - b2) * g * g for v, g in zip(self.v, gradients)]
        m_share, v_share = 1 - b1 ** self.step, 1 - b2 ** self.step
        for p, m, v in zip(self.params, self.m, self.v):
            p.data -= rate * (m / m_share) / (math.sqrt(v / v_share) + eps)

# %% Part I, chapter 10: Training -----------------------------------------------------------------
# A document, its gradients, a small step; a thousand times. The rate falls to zero meanwhile: long
# steps to get near, short ones to settle. (Rate, its fall and the number of steps are taste.)

def train(adam, gradients_at, steps, learning_rate=0.01, decay=lambda progress: 1 - progress):
    """Train until `steps` steps are made; a generator of (step, loss) after each of them.
    gradients_at: a function of the number of steps made, which returns a loss and its gradients."""
    collecting = gc.isenabled()
    gc.disable()                       # Python would keep searching for garbage that is not there
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
    """Train a model on the documents in a file, then print documents that it makes up."""
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
