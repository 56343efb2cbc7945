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
other way, and go on to the next name. That is *training*, and the plan of Part I:

    names -> tokens -> model -> predictions -> loss -> gradients -> better parameters

Part I is the whole algorithm; Part II is comfort around it: checkpoints, pictures, options.
The algorithm is that of Andrej Karpathy's microgpt, and so are its results, digit by digit.
"""

# %% Part I, chapter 1: Data ----------------------------------------------------------------------
# A document is one line of a text file; here, one name. Training reads them in a random order: if
# all the names with "a" came first, the model would learn a lopsided language. All chance comes
# from one random generator, `rng`, that is started with a known seed: same seed, same run.

import gc
import itertools
import math
import random
from operator import attrgetter, mul
from typing import NamedTuple

def load_docs(path):
    """The documents in a UTF-8 text file: its lines, stripped, empty ones left out."""
    with open(path, encoding='utf-8-sig') as file:     # -sig: skip the mark that some editors add
        return [line.strip() for line in file if line.strip()]

# %% Part I, chapter 2: Tokens --------------------------------------------------------------------
# A model computes with numbers, so each character gets one: its place in the sorted alphabet of the
# data, a = 0 to z = 25. One more token, the last, 26, is called BOS, "beginning of sequence". It
# stands between names: before the first letter the model sees only BOS, and after the last letter
# BOS is what it should predict: "here begins the next". So emma gives six tokens,
#     BOS e m m a BOS
# and five predictions: e after BOS, m after BOS e, and so on to BOS after BOS e m m a.

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
#
# The chain rule makes the gradient of the whole from them. Let a = 2 and b = 3, then c = a * b = 6
# and loss = c + a = 8. We start at the end: as the loss grows by 1 it grows by 1, so its own gradient
# is 1. Then, going back, each Value hands each of its inputs the slope times its own gradient:
#     loss = c + a    slopes 1 and 1:    c gets 1 * 1 = 1    a gets 1 * 1 = 1
#     c = a * b       slopes 3 and 2:    a gets 3 * 1 = 3    b gets 2 * 1 = 2
# Now a acts on the loss in two ways, so its gradient is their sum, 4: gradients are added up, never
# just set. And c must have its whole gradient before it hands it on, so all that was made from c
# takes its turn before c. Whatever is made from c is younger than c: we go from young to old.

class Value:
    """A number that remembers how it was computed.

    data: the number. grad: its gradient; after loss.backward(), the derivative of loss by it.
    inputs: pairs (values, slopes) of two equally long lists: the Values it was computed from, and
    its derivative by each. Parameters and constants have no inputs; they are called leaves.

    >>> a, b = Value(2.0), Value(3.0)
    >>> loss = a * b + a
    >>> loss.backward()
    >>> loss, a, b
    (Value(data=8.0, grad=1.0), Value(data=2.0, grad=4.0), Value(data=3.0, grad=2.0))
    """
    __slots__ = ('data', 'grad', 'inputs', 'birth')    # slots: smaller and faster than a dict
    births = itertools.count()                         # counts every Value ever made

    def __init__(self, data, *inputs):
        self.data = data
        self.grad = 0.0
        self.inputs = inputs
        self.birth = next(Value.births)

    def __repr__(self): return f'Value(data={self.data}, grad={self.grad})'

    # All operations have one shape: Value(result, (inputs, their slopes)).
    def __add__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data + other.data, ((self, other), (1.0, 1.0)))

    def __mul__(self, other):
        other = other if isinstance(other, Value) else Value(other)
        return Value(self.data * other.data, ((self, other), (other.data, self.data)))

    def __pow__(self, other):
        if isinstance(other, Value): return (self.log() * other).exp()
        return Value(self.data ** other, ((self,), (other * self.data ** (other - 1),)))

    def exp(self): return Value(math.exp(self.data), ((self,), (math.exp(self.data),)))
    def log(self): return Value(math.log(self.data), ((self,), (1 / self.data,)))
    def relu(self): return Value(max(self.data, 0.0), ((self,), (float(self.data > 0),)))

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
                    for values, _ in value.inputs:
                        if id(values) not in seen:     # many Values may share one list of inputs;
                            seen.add(id(values))       # one look at it is enough
                            groups.append(values)
        return sorted(found, key=attrgetter('birth'), reverse=True)

    def backward(self):
        """Add to the grad of every leaf behind this Value the derivative of this Value by it."""
        graph = self.graph()
        for value in graph:
            value.grad = 0.0
        self.grad += 1.0
        for value in graph:
            if value.grad:                             # zero would hand on nothing but zeros
                for values, slopes in value.inputs:
                    for source, slope in zip(values, slopes):
                        source.grad += slope * value.grad

# %% Part I, chapter 4: Values with many inputs ---------------------------------------------------
# A model is mostly weighted sums, w1 * x1 + w2 * x2 + ... + w16 * x16. The operators above would
# make 31 Values of it, 16 products and 15 sums. But the chain rule asks only how fast the whole sum
# grows with each input: by x1 for w1, and by w1 for x1. The sums in between have slope 1 and change
# nothing. So it may as well be one Value with 32 inputs: the same gradients, many times faster.
#
# These functions, and the whole model, also take plain floats in place of Values. With Values they
# leave the trail that backward() follows; with floats they only compute, enough for sampling.

def numbers(x):
    """The plain numbers in a list of Values (or of plain numbers)."""
    return [value.data for value in x] if isinstance(x[0], Value) else x

def linear(x, weights):
    """A weighted sum of x (n_in,) for each row of weights (n_out, n_in): n_out sums."""
    if not isinstance(x[0], Value):
        return [sum(map(mul, row, x)) for row in weights]
    x_data, sums = numbers(x), []
    for row in weights:
        row_data = numbers(row)
        sums.append(Value(sum(map(mul, row_data, x_data)), (row, x_data), (x, row_data)))
    return sums

def total(x):
    """The sum of a list, as one Value with as many inputs."""
    return Value(sum(numbers(x)), (x, [1.0] * len(x))) if isinstance(x[0], Value) else sum(x)

def add(x, y):
    """Two lists of the same length, added number by number."""
    return [x_i + y_i for x_i, y_i in zip(x, y)]

def exp(x): return x.exp() if isinstance(x, Value) else math.exp(x)
def relu(x): return x.relu() if isinstance(x, Value) else max(x, 0.0)

# %% Part I, chapter 5: Parameters ----------------------------------------------------------------
# A token is a mere place in the alphabet; b is not twice a. So each token gets a list of n_embd
# numbers to describe it, its *embedding*, and so does each position. Nobody writes these lists:
# like all parameters they are drawn at random, and training makes sense of them (one may come to
# say "vowel"). At random, because equal parameters would get equal gradients and stay equal; small,
# so that at first no letter is preferred. The matrices have the names they have in GPT-2:
#     wte        word token embedding: one row of n_embd numbers for each token
#     wpe        word position embedding: one row for each position
#     lm_head    language model head: one row for each token, to score it as the next one
#     attn_w…    query, key, value and output weights of attention   } of each layer:
#     mlp_fc1/2  fully connected weights of the multi-layer perceptron }  see chapter 7

class Config(NamedTuple):
    """The sizes of a model. All four are a matter of taste: more learns more, and takes longer."""
    n_layer: int = 1       # layers of attention and MLP, each refining the work of the one before
    n_embd: int = 16       # numbers that describe a token at its position
    n_head: int = 4        # heads that attend side by side, each on n_embd / n_head numbers
    block_size: int = 16   # positions; of a longer document only the beginning is used

def new_model(config, vocab_size, rng):
    """A dict of parameter matrices, lists of rows of Values. vocab_size: the number of tokens."""
    def matrix(n_out, n_in):                           # 0.08, the spread around zero, is taste
        return [[Value(rng.gauss(0, 0.08)) for _ in range(n_in)] for _ in range(n_out)]
    n = config.n_embd
    model = {'wte': matrix(vocab_size, n), 'wpe': matrix(config.block_size, n),
             'lm_head': matrix(vocab_size, n)}
    for i in range(config.n_layer):
        for name in ('attn_wq', 'attn_wk', 'attn_wv', 'attn_wo'):
            model[f'layer{i}.{name}'] = matrix(n, n)
        model[f'layer{i}.mlp_fc1'] = matrix(4 * n, n)  # 4 times wider: custom, not a must
        model[f'layer{i}.mlp_fc2'] = matrix(n, 4 * n)
    return model

def parameters(model):
    """All parameters in one flat list, in the order in which they were drawn."""
    return [value for matrix in model.values() for row in matrix for value in row]

# %% Part I, chapter 6: Two tools: softmax and the norm -------------------------------------------
# softmax turns scores, which may be any numbers, into probabilities: positive, and together 1.
# exp() makes each score positive, and a *difference* of scores a *ratio* of probabilities: one more
# point is always e = 2.7 times as likely. Taking the highest score off all of them changes no ratio,
# but exp(800) does not fit a float and exp(0) does. The highest is taken as a plain number: what
# changes nothing needs no gradient.
# rmsnorm scales a list so that the mean of its squares is 1 (RMS: root mean square). What reads it
# then always meets numbers of one size. The 1e-5 only keeps a list of zeros from dividing by zero.

def softmax(scores):
    """Probabilities (n,) from scores (n,)."""
    highest = max(numbers(scores))
    ratios = [exp(score - highest) for score in scores]
    share = total(ratios) ** -1
    return [ratio * share for ratio in ratios]

def rmsnorm(x):
    """x (n,), scaled to a mean square of 1."""
    mean_square = linear(x, [x])[0] / len(x)           # x weighted with x: the sum of its squares
    scale = (mean_square + 1e-5) ** -0.5
    return [x_i * scale for x_i in x]

# %% Part I, chapter 7: The model -----------------------------------------------------------------
# gpt() reads one token and scores every token as the next. Think of x, n_embd numbers, as a notepad
# for this position. It begins as what the token is plus where it stands. Each layer adds two notes:
#
# Attention fetches from earlier positions. To predict after "q" or after "th", it matters what came
# when. From x come three lists: a *query*, what this position looks for; a *key*, what it can be
# found by; a *value*, what it hands over when found. The more a query agrees with a key (a score:
# the sum of their products), the more of that position's value is fetched: softmax turns the scores
# into weights, and the note is the weighted mean of the values. Several heads do this at once, each
# on its own part of the lists: one softmax gives one mean, but one head may look for the last vowel
# while another looks for the first letter. attn_wo then mixes what the heads found into one note.
#
# The MLP thinks over what is on the notepad, position by position. Attention can only average; the
# MLP can decide. Each of its 4 * n_embd sums looks for a pattern, relu silences those that are not
# above zero, and fc2 notes what follows from the others. Without relu, two weighted sums in a row
# would be no more than one, and could express no "if".
#
# Why added to the notepad, and not put in its place? In a sum each term has slope 1: gradients come
# back through all layers unweakened, and a layer that knows nothing yet destroys nothing. As the
# notes add up the numbers grow, so each layer reads a normed copy; the notepad itself stays a sum.

def new_cache(config):
    """What attention keeps of the positions read: for each layer and head, a pair (keys, values).
    Later positions need these again, whereas a query serves its own position alone."""
    return [[([], []) for _ in range(config.n_head)] for _ in range(config.n_layer)]

def attention(x, model, layer, heads):
    """The note (n_embd,) on what x (n_embd,) finds. heads: this layer's cache; it grows by x."""
    query = linear(x, model[f'{layer}.attn_wq'])
    key = linear(x, model[f'{layer}.attn_wk'])
    value = linear(x, model[f'{layer}.attn_wv'])
    head_dim = len(x) // len(heads)
    fetched = []
    for h, (keys, values) in enumerate(heads):
        part = slice(h * head_dim, (h + 1) * head_dim)
        keys.append(key[part])         # (positions so far, head_dim): nothing of the future is in
        values.append(value[part])     # the cache yet, so no position can look at it
        scores = linear(query[part], keys)             # (positions so far,)
        # A sum of head_dim random products is about sqrt(head_dim) in size. Undivided, softmax would
        # give nearly all to one position when head_dim is large, with slopes too flat to learn by.
        weights = softmax([score / math.sqrt(head_dim) for score in scores])
        fetched += linear(weights, list(zip(*values)))     # zip: from a row for each position to a
    return linear(fetched, model[f'{layer}.attn_wo'])      # row for each of the head_dim numbers

def mlp(x, model, layer):
    """The note (n_embd,) on what follows from x (n_embd,)."""
    hidden = [relu(pattern) for pattern in linear(x, model[f'{layer}.mlp_fc1'])]
    return linear(hidden, model[f'{layer}.mlp_fc2'])

def gpt(model, token, position, cache):
    """The score of each token as the next one, (vocab_size,). These scores are called logits."""
    # Token plus position loses neither: weighted sums can tell them apart, and learn to.
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
    """-log(probability) of the token `target`, in nats (natural log; 1 bit = 0.69 nats).

    One Value again: its slope by each logit comes out as that token's probability, less 1 for the
    target. So training lowers each score as far as it was believed, and raises the true one."""
    slopes = softmax(numbers(logits))
    loss = -math.log(slopes[target]) if slopes[target] else math.inf
    slopes[target] -= 1
    return Value(loss, (logits, slopes)) if isinstance(logits[0], Value) else loss

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
    for p in params:
        p.grad = 0.0                                   # or the last document's would be added to
    loss = document_loss(model, config, tokens)
    loss.backward()
    return loss.data, [p.grad for p in params]

# %% Part I, chapter 9: From gradients to better parameters ---------------------------------------
# The plain way is p -= rate * gradient: downhill. *Adam* (Kingma and Ba, 2014) mends two things.
# One name's gradient is a hint full of noise, so Adam follows m, a running mean of the gradients, in
# which noise cancels out. And gradients differ in size a hundredfold between parameters, so it
# divides by the root of v, a running mean of their squares: the usual size. The quotient is near 1
# where gradients agree, near 0 where they contradict each other; times `rate`, it is the step.
# (Statistics calls m and v "moments".) Both start at 0 and so are too small at first: after one step
# m is 0.15 g, not g. Dividing by 1 - 0.85 ** step is the exact cure; papers write the result as m̂, v̂.

class Adam:
    """Moments m and v for each parameter, and the number of steps made."""
    beta1, beta2 = 0.85, 0.99          # how much m and v keep at each step; taste
    eps = 1e-8                         # prevents dividing by zero

    def __init__(self, n_params):
        self.m, self.v, self.step = [0.0] * n_params, [0.0] * n_params, 0

    def update(self, params, gradients, rate):
        """One step: change the data of each of params (Values) by about `rate` at the most."""
        b1, b2, eps, self.step = self.beta1, self.beta2, self.eps, self.step + 1
        self.m = [b1 * m + (1 - b1) * g for m, g in zip(self.m, gradients)]
        self.v = [b2 * v + (1 - b2) * g * g for v, g in zip(self.v, gradients)]
        m_share, v_share = 1 - b1 ** self.step, 1 - b2 ** self.step
        for p, m, v in zip(params, self.m, self.v):
            p.data -= rate * (m / m_share) / (math.sqrt(v / v_share) + eps)

# %% Part I, chapter 10: Training -----------------------------------------------------------------
# A document, its gradients, a small step; a thousand times. The rate falls to zero meanwhile: long
# steps to get near, short ones to settle. (Rate and decay are taste.)

def linear_decay(progress): return 1 - progress

def train(model, gradients_at, steps, learning_rate=0.01, decay=linear_decay, adam=None):
    """Train until `steps` steps are made; yields (step, loss) after each of them.
    gradients_at: a function of the number of steps made, which returns a loss and its gradients."""
    params = parameters(model)
    adam = adam or Adam(len(params))
    collecting = gc.isenabled()
    gc.disable()                       # Python's search for cyclic garbage: a third slower, in vain
    try:
        while adam.step < steps:
            rate = learning_rate * decay(adam.step / steps)
            loss, gradients = gradients_at(adam.step)
            adam.update(params, gradients, rate)
            yield adam.step, loss
    finally:
        if collecting: gc.enable()

# %% Part I, chapter 11: Sampling -----------------------------------------------------------------
# To write, the model plays the game with itself: from BOS on it predicts, a token is drawn by its
# probabilities and read as the next, until BOS is drawn. (Always taking the likeliest token would
# write one name for ever.) All scores are divided by a temperature before: below 1, their
# differences widen, and the likely becomes likelier; above 1, unlikely tokens get their chance.

def draw(logits, rng, temperature=0.5):                # 0.5: taste
    """One token, drawn by chance according to its logits."""
    probabilities = softmax([logit / temperature for logit in logits])
    return rng.choices(range(len(logits)), weights=probabilities)[0]

def plain(model):
    """The model with floats for Values. What it computes leaves no trail, and is faster."""
    return {name: [numbers(row) for row in matrix] for name, matrix in model.items()}

def sample(model, config, choose, prompt=()):
    """The tokens of a new document, without BOS. choose: a function from logits to the next token;
    prompt: tokens that the document must begin with."""
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
    model = new_model(config, len(chars) + 1, rng)

    def gradients_at(step):
        return document_gradients(model, config, encode(docs[step % len(docs)], chars))

    for step, loss in train(model, gradients_at, steps):
        if step % 100 == 0: print(f'step {step:4} / {steps} | loss {loss:.4f}')
    trained = plain(model)
    for _ in range(samples):
        tokens = sample(trained, config, lambda logits: draw(logits, rng))
        print(''.join(chars[token] for token in tokens))

# That is all of GPT. The rest makes it comfortable.
