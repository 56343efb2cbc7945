# %% [markdown]
"""
# microgpt: a GPT in one file of plain Python

This program reads a list of names, learns how names are spelled, and makes up
new ones. Run it with `python3 microgpt.py`, or read it from here to the end: you
need to know Python and school calculus; everything else is explained. (GPT
stands for "generative pre-trained transformer": it generates text, it is
trained on plain text first, and a transformer is a model like that of chapter
6.)

**The game.** Given the letters so far, predict the next one. After "e", "m",
"m" a good player says "most likely a". Whoever can play this game can also
write: predict, draw a letter according to the predicted probabilities, append
it, and predict again. Chatbots play the same game with pieces of words.

**The player.** The *model* is a formula with a few thousand adjustable numbers,
its *parameters*, which are random at first. From the letters so far it computes
a probability for every possible next letter.

**The training.** The *loss* says how surprised the model was by the letters
that really came. For every parameter, calculus tells us how fast the loss grows
when this parameter grows: its *gradient*. We move every parameter a little in
the direction that lowers the loss, go on to the next name, and do so a thousand
times.

Part I is the complete algorithm. It follows Andrej Karpathy's microgpt (2026):
on the same data it makes up the same names, with the same losses up to
rounding. Part II makes a convenient tool of it.

Some numbers in the code are marked as *taste*: others near them would do as
well, or a little better or worse. (The same goes for all numbers in examples.)
Every other number belongs to a formula. Most chapters end with an example and
its result, rounded. (`# %%` begins a cell of a notebook.)
"""

# %% [markdown]
# # Part I: the algorithm
#
# ## 1. Data
#
# A *document* is one line of a text file; here, one name. Our file is
# `input.txt`, which has several thousand names in alphabetical order. Training
# will read a thousand of them in random order. If it took the first thousand,
# the model would learn that all names begin with "a" or "b".
#
# All randomness of a run comes from one generator, `rng`. It starts from a
# number that we choose, the *seed*: with the same seed, a run gives the same
# names.

# %%
import math
import random
from typing import NamedTuple


def load_docs(path):
    """The documents in a UTF-8 text file: its lines, stripped, empty ones left out."""
    with open(path, encoding='utf-8-sig') as file:  # -sig: skips a byte order mark
        docs = [line.strip() for line in file]
    return [doc for doc in docs if doc]


# %% [markdown]
# ## 2. Tokens
#
# A model computes with numbers, so every character gets one, its *token*: its
# place in the *vocabulary*, the sorted characters of the data. With the letters
# from a to z, the token of a is 0 and that of z is 25.
#
# One more character marks where a name begins and ends. We take the line break,
# since no line contains one, and put it last in the vocabulary: token 26. At
# the beginning it is usually called BOS, "beginning of sequence". After the
# last letter, it is what the model should predict: "here a new name begins".
#
# With all letters in the vocabulary, emma becomes six tokens, and gives five
# predictions to practise on:
#
# ```text
# tokens    BOS e m m a BOS    =    26 4 12 12 0 26
#
# after                predict
# BOS                  e
# BOS e                m
# BOS e m              m
# BOS e m m            a
# BOS e m m a          BOS
# ```

# %%
BOS = '\n'


def vocabulary(docs):
    """A string of all characters in docs, sorted, and BOS; a token is a place in it."""
    chars = set(''.join(docs))
    assert BOS not in chars, 'a document has a line break in it, which stands for BOS'
    return ''.join(sorted(chars)) + BOS


def encode(doc, vocab):
    """The tokens of a document, with BOS at both ends."""
    for char in doc:
        assert char in vocab[:-1], f'{char!r} is not in the vocabulary'
    return [vocab.index(char) for char in BOS + doc + BOS]


encode('emma', vocabulary(['emma']))  # [3, 1, 2, 2, 0, 3]

# %% [markdown]
# ## 3. Values: numbers that remember where they come from
#
# Training asks one question about every parameter: how fast does the loss grow
# when this parameter grows? The answer is the derivative of the loss with
# respect to the parameter, its *gradient*.
#
# To find it, we compute with Values. A `Value` remembers the Values it was
# computed from, its *inputs*, and one *slope* for each of them: how fast the
# result grows when this input grows. The slopes of single steps are known from
# school:
#
# ```text
# result          slope of a              slope of b
# a + b           1                       1
# a * b           b                       a
# a / b           1 / b                   -a / b ** 2
# a ** 3          3 * a ** 2
# exp(a)          exp(a)
# log(a)          1 / a
# ```
#
# The *chain rule* builds the gradients of a long computation from these slopes.
# We start at the end: the gradient of the loss with respect to itself is 1.
# Then we go back. Each Value hands to each of its inputs its own gradient times
# the slope of that input:
#
# ```text
# forward: a = 2, b = 3, c = a * b = 6, loss = c + a = 8
#
# going back through      c gets         a gets         b gets
# loss = c + a            1 * 1 = 1      1 * 1 = 1
# c = a * b                              1 * 3 = 3      1 * 2 = 2
#
# gradient                1              4              2
# ```
#
# Two rules follow. First, a acts on the loss in two ways, so its gradient is
# the sum of what it gets: gradients are *added up*, never just set. (Check:
# with b = 3, the loss is 3 * a + a = 4 * a.) Second, c must have its whole
# gradient before it hands it on. So everything that was computed from c has to
# take its turn before c.
#
# This order costs nothing if we keep a *tape*: a list of all Values that were
# computed from others, in the order in which that happened. What is computed
# from c always stands after c. So `backward` reads the tape from its end to its
# beginning. Parameters, which are not computed, do not stand on it.
#
# The tape has its rules:
#
# - It grows with every computation, until somebody clears it, as chapter 10
#   does after each step: `Value.tape.clear()`.
# - What stood on it is a mere number from then on. New operations may use it,
#   but it hands on nothing, and to call its `backward` is an error.
# - Between a computation and its `backward`, no number may change, since some
#   slopes (those of `dot` in chapter 4) are read only then.

# %%
def by_slopes(inputs, slopes, grad):
    """The usual way to hand a gradient on: to each input, times its slope."""
    for x, slope in zip(inputs, slopes):
        x.grad += slope * grad


class Value:
    """A number that remembers which Values it was computed from.

    data: the number.
    grad: after loss.backward(), the derivative of the loss with respect to it; in
        parameters, those of several losses add up.
    inputs: the Values that it was computed from; a parameter has none.
    slopes: its derivative with respect to each of the inputs.
    hand_on: the function that hands its grad on to the inputs. (See dot() for one that
        keeps other things in inputs and slopes.)

    >>> a, b = Value(2.0), Value(3.0)
    >>> loss = a * b + a
    >>> loss.backward()
    >>> loss, a, b
    (Value(data=8.0, grad=1.0), Value(data=2.0, grad=4.0), Value(data=3.0, grad=2.0))
    """

    __slots__ = ('data', 'grad', 'inputs', 'slopes', 'hand_on')  # saves time and memory
    tape = []  # one list for all Values

    def __init__(self, data, inputs=(), slopes=(), hand_on=by_slopes):
        self.data = data
        self.grad = 0.0
        self.inputs = inputs
        self.slopes = slopes
        self.hand_on = hand_on
        if inputs:
            assert len(inputs) == len(slopes), 'every input has one slope'
            Value.tape.append(self)

    def __repr__(self):
        return f'Value(data={self.data}, grad={self.grad})'

    # Every operation has the same shape: Value(result, inputs, slopes).

    def __add__(self, other):
        if not isinstance(other, Value):
            other = Value(other)
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        if not isinstance(other, Value):
            other = Value(other)
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __truediv__(self, other):
        if not isinstance(other, Value):
            other = Value(other)
        result = self.data / other.data
        return Value(result, (self, other), (1 / other.data, -result / other.data))

    def __pow__(self, n):  # math.pow refuses roots of negative numbers
        return Value(math.pow(self.data, n), (self,), (n * self.data ** (n - 1),))

    def exp(self):
        result = math.exp(self.data)
        return Value(result, (self,), (result,))

    def log(self):
        return Value(math.log(self.data), (self,), (1 / self.data,))

    # These follow from the others. (For 2 - a, Python calls a.__rsub__(2).)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __rsub__(self, other):
        return -self + other

    def __rtruediv__(self, other):
        return Value(other) / self

    def relu(self):
        """Itself if positive, otherwise 0, which depends on nothing; for the MLP."""
        return Value(0.0) if self.data <= 0 else self

    def backward(self):
        """Find the derivative of this Value with respect to all that it depends on.

        It is added to the grad of parameters, so that one may call this for several
        losses. The grad of Values on the tape begins at 0: otherwise a second call
        would hand on once more what the first has handed on.
        """
        assert not self.inputs or self in reversed(Value.tape), 'its tape was cleared'
        for result in Value.tape:
            result.grad = 0.0
        self.grad += 1.0  # not =, for it may be a parameter
        for result in reversed(Value.tape):
            if result.grad:  # 0 would hand on nothing but zeros
                result.hand_on(result.inputs, result.slopes, result.grad)


a, b = Value(2.0), Value(3.0)
loss = a * b + a
loss.backward()
a.grad, b.grad  # (4.0, 2.0)

# %% [markdown]
# ## 4. Many inputs at once
#
# A model computes mostly weighted sums, such as
# `w1 * x1 + w2 * x2 + ... + w16 * x16`, where the *weights* w are parameters.
# This is the *dot product* of the lists w and x. With the operators above, it
# would take 31 Values: 16 products and 15 sums.
#
# But the chain rule asks only one thing: what is the slope of each input? When
# x1 grows by 1, the dot product grows by w1, whatever the other terms are; when
# w1 grows by 1, it grows by x1. The slope of every number is its partner:
#
# ```text
# x1 * w1 + x2 * w2        input     x1    x2    w1    w2
#                          slope     w1    w2    x1    x2
# ```
#
# So a dot product may as well be *one* Value, with a way of its own to hand on
# its gradient: by partners. Such a Value has its two lists in the places of
# inputs and slopes. The gradients are the same as with 31 Values, where each
# sum would only hand on its gradient times 1. But one Value takes much less
# time.
#
# The shape of a list is written like this: (n,) is a list of n Values, and
# (n_out, n_in) is a list of n_out rows, each of them a list of n_in Values.
# Such a list of rows is a *matrix*.

# %%
def by_partners(u, v, grad):
    """How a dot product hands its gradient on: the slope of a number is its partner."""
    for u_i, v_i in zip(u, v):
        u_i.grad += v_i.data * grad
        v_i.grad += u_i.data * grad


def dot(u, v):
    """u[0] * v[0] + u[1] * v[1] + ... as one Value. u, v: both (n,).

    The Value keeps the lists themselves; so they must not change before backward().
    """
    assert len(u) == len(v), f'a list of {len(u)} meets a list of {len(v)}'
    result = 0.0
    for u_i, v_i in zip(u, v):
        result += u_i.data * v_i.data
    return Value(result, u, v, by_partners)


def linear(x, rows):
    """The dot products of x (n_in,) with all rows (n_out, n_in): a list (n_out,)."""
    return [dot(x, row) for row in rows]


def add(u, v):
    """The list u[0] + v[0], u[1] + v[1], ... u, v: both (n,)."""
    assert len(u) == len(v), f'a list of {len(u)} meets a list of {len(v)}'
    return [u_i + v_i for u_i, v_i in zip(u, v)]


def numbers(x):
    """The plain numbers in a list of Values."""
    return [x_i.data for x_i in x]


def total(x):
    """x[0] + x[1] + ... as one Value; every slope is 1."""
    return Value(sum(numbers(x)), x, [1.0] * len(x))


x, w = [Value(1.0), Value(2.0)], [Value(3.0), Value(4.0)]
dot(x, w).backward()
[x_i.grad for x_i in x], [w_i.grad for w_i in w]  # ([3.0, 4.0], [1.0, 2.0])

# %% [markdown]
# ## 5. Two tools
#
# ### Softmax: from scores to probabilities
#
# The model will give every token a *score*, which may be any number. Softmax
# makes probabilities from scores: positive numbers whose sum is 1. It takes
# exp() of each score and divides by the total:
#
# ```text
# scores                 exp of scores           probabilities
# 1.0   2.0   3.0        2.72   7.39   20.09     0.09   0.24   0.67
# 0.0   0.0   0.0        1.00   1.00    1.00     0.33   0.33   0.33
# ```
#
# Why exp()? It is always positive, it grows with the score, and only
# differences count: a token with one point more than another always has e =
# 2.72 times its probability.
#
# So we may subtract the highest score from all of them, and no probability
# changes. We do it because exp(800) is too large for a float; afterwards, the
# largest is exp(0) = 1. The highest score is a plain number here. It needs no
# gradient, since the result does not depend on what we subtract.

# %%
def softmax(scores):
    """Probabilities (n,) from scores (n,)."""
    highest = max(numbers(scores))
    exps = [(score - highest).exp() for score in scores]
    exps_total = total(exps)
    return [exp / exps_total for exp in exps]


scores = [Value(1.0), Value(2.0), Value(3.0)]
numbers(softmax(scores))  # [0.09, 0.24, 0.67]

# %% [markdown]
# ### RMSNorm: keeping numbers at one size
#
# Our model (chapter 6) will have several parts. Each reads a list x and makes
# weighted sums of it, and some of these become scores for softmax. If x grows,
# so do the sums. Here are three lists that differ only in size, and what
# softmax makes of them:
#
# ```text
# x                      softmax(x)              softmax(rmsnorm(x))
#  0.01   0.02   0.03    0.33   0.33   0.34      0.20   0.31   0.49
#  1.00   2.00   3.00    0.09   0.24   0.67      0.20   0.31   0.49
# 100.0  200.0  300.0    0.00   0.00   1.00      0.20   0.31   0.49
# ```
#
# Small numbers cannot express a preference, and large ones leave no room for
# doubt. And in training, sizes change all the time: weights that were right for
# one size would be wrong for the next. So most parts do not read x as it is,
# but a copy that is divided by its *size*, the root of the mean of the squares
# (RMS, "root mean square"). How strong a preference becomes is then up to the
# weights.

# %%
def rmsnorm(x):
    """x (n,), divided by the root of the mean of its squares."""
    mean_square = dot(x, x) / len(x)  # x counts twice, so its slope is 2 * x
    size = (mean_square + 1e-5) ** 0.5  # 1e-5: against division by 0; taste
    return [x_i / size for x_i in x]


numbers(rmsnorm([Value(1.0), Value(2.0), Value(3.0)]))  # [0.46, 0.93, 1.39]

# %% [markdown]
# ## 6. The model: a transformer
#
# The model reads a text token by token. At each position it gives every token a
# score, called its *logit*: the higher, the likelier it comes next.
#
# What describes a letter? Its place in the alphabet says nothing about how it
# is used. So each token has a list of `n_embd` numbers (here 16), its
# *embedding*. Each position has one too, for a reason that we shall see with
# attention. These lists are the rows of two matrices, `wte` (*word token
# embedding*) and `wpe` (*word position embedding*). Nobody fills them by hand:
# they are parameters, and training will give them a meaning.
#
# The sum of the two lists, number by number, scaled by rmsnorm, is x. Think of
# x as a *notepad* for this position: at first it says which token was read, and
# where. One list has room for both: training can use some of its numbers for
# the token, and others for the position.
#
# Then every *layer* adds two notes to the notepad: *attention* fetches
# something from the positions read so far, its own included, and the *MLP*
# (explained below) thinks over what is on the notepad. Our model has one layer;
# larger ones have many. Last comes `lm_head`, the *language model head*. It has
# a row for each token, and the dot product of x with this row is the logit of
# the token.
#
# Here is the whole model; its parts come next. `model` is a dict of its sizes,
# its matrices and its layers, and a layer is a dict of matrices, too; chapter 7
# makes them. `cache` is what attention remembers: for each layer, two lists,
# which get an entry at each position.

# %%
class Config(NamedTuple):
    """The sizes of a model."""

    n_layer: int = 1  # layers, each of them attention and an MLP
    n_embd: int = 16  # numbers in an embedding, and in x
    n_head: int = 4  # heads of attention; n_embd is a multiple of it
    block_size: int = 16  # positions; documents of 16 letters or more lose their end
    # All four: taste. More of the first two cost time, and can be better.


def gpt(model, token, position, cache):
    """The logit of each token, (vocab_size,): its score as the next one.

    cache: from new_cache(). It has all earlier positions; this one is added.
    """
    lengths = [len(keys) for keys, values in cache]
    problem = f'at position {position}, the cache has {lengths}: see new_cache()'
    assert lengths == [position] * len(model['layers']), problem
    n_head = model['config'].n_head
    x = rmsnorm(add(model['wte'][token], model['wpe'][position]))
    for layer, (keys, values) in zip(model['layers'], cache):
        x = add(x, multi_head(rmsnorm(x), layer, n_head, keys, values))
        x = add(x, mlp(rmsnorm(x), layer))
    return linear(x, model['lm_head'])


# %% [markdown]
# Why is a note *added* to the notepad, and not put in its place? In a sum,
# every term has slope 1, so gradients have a way back that leads around the
# layers. Otherwise they would have to go through all layers and be multiplied
# by one slope after the other, and 0.5, ten times over, is 0.001. And a layer
# that has not yet learnt anything erases nothing. (This is called a *residual*
# connection.)
#
# Attention and the MLP read normed copies of the notepad. The notepad itself is
# normed once, when it begins: otherwise the embeddings of an untrained model
# would be as small as its first notes, which mean nothing (both have a size of
# about 0.1). From then on its size stays between 1 and 1.6 on average, so
# `lm_head` can read it as it is.
#
# ### Attention: fetching from earlier positions
#
# From x, three matrices make three lists by dot products. `attn_wq` makes a
# *query*: what this position looks for. `attn_wk` makes a *key*: what it can be
# found by. And `attn_wv` makes a *value*: what it hands over when it is found.
# What these are is not fixed: training finds out what to look for. (This value
# is a list of our Values; both words are usual.)
#
# How well does a query fit a key? Their dot product tells us: it is large if
# both lists are large, with the same sign, in the same places. Divided by the
# square root of their length, for a reason that follows, it is the score of the
# position that the key belongs to. Softmax makes *attention weights* of the
# scores. (They are computed; they are not parameters.) The result is the mean
# of all values, each taken with its attention weight.
#
# Here we are at the m of "em", with lists of four numbers, and see three
# positions. The query is 2 0 1 1; sqrt(4) is 2:
#
# ```text
# position   key          query . key        score         weight   value
# BOS        0 3 0 0      0+0+0+0 = 0        0 / 2 = 0     0.09     1 0 0 0
# e          2 1 0 0      4+0+0+0 = 4        4 / 2 = 2     0.67     0 1 0 0
# m          0 0 1 1      0+0+1+1 = 2        2 / 2 = 1     0.24     0 0 1 1
#
# weighted mean of the values:   0.09 0.67 0.24 0.24
# ```
#
# The query finds e, so most of the mean is what e hands over. Each number of
# the mean is a dot product again, of the weights and a *column* of the values.

# %%
def attention(query, keys, values):
    """The mean of the values, weighted by how well their keys fit the query: (n,).

    query: (n,); keys, values: both (positions, n).
    """
    scores = [score / len(query) ** 0.5 for score in linear(query, keys)]
    weights = softmax(scores)
    columns = zip(*values)  # (n, positions)
    return linear(weights, columns)


query = [Value(x) for x in (2, 0, 1, 1)]
keys = [[Value(x) for x in key] for key in ((0, 3, 0, 0), (2, 1, 0, 0), (0, 0, 1, 1))]
values = [[Value(x) for x in row] for row in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 1))]
numbers(attention(query, keys, values))  # [0.09, 0.67, 0.24, 0.24]

# %% [markdown]
# ### Why the scores are divided by sqrt(length)
#
# Softmax must not get scores that are too large. Look at scores ten times as
# large as those of the example:
#
# ```text
# scores              weights                     growth of the weight of m
# BOS   e     m       BOS     e       m           when its score grows by 0.1
# 0.0   2.0   1.0     0.09    0.67    0.24        0.02
# 0.0  20.0  10.0     0.0000  1.0000  0.0000      0.0000
# ```
#
# One position takes everything. Worse, a change of the scores hardly changes
# the weights: the slopes are nearly 0. Then the gradients are nearly 0 too, and
# say nothing about what attention should look at instead.
#
# And dot products get larger when lists get longer. Before training, what is
# added up is as often negative as positive, so it cancels in part, but not
# wholly. A sum of n numbers, each 1 or -1 at random, has the size sqrt(n), as a
# root mean square over many such sums. (In the square of a sum, the squares
# give n, and the mixed products cancel out on average.)
#
# ```text
# n              1     4     16    64
# size of sum    1     2      4     8
# ```
#
# So dividing by sqrt(n) keeps the scores of long lists at the size of those of
# short ones.
#
# ### Several heads, and a memory
#
# One such search gives one mean, in which all findings are mixed. So several
# *heads* search side by side, each with its own part of query, key and value.
# With `n_embd` 16 and 4 heads, each part has 4 numbers, the `head_dim`. One
# head may look for the last vowel, another for the first letter. (These heads
# have nothing to do with `lm_head`.) What they found stands side by side, too,
# and `attn_wo` makes the note of it: each number can depend on all findings.
#
# ```text
# numbers of q    0 1 2 3    4 5 6 7    8 9 10 11    12 13 14 15
# head               0          1           2             3
# ```
#
# The keys and values of this position are kept in the *cache*, because later
# positions will look at them. This is how positions see earlier ones. The query
# is not kept: only its own position uses it. And no position can see the
# future: the keys and values of later positions are not in the cache yet.
#
# And why do positions need an embedding? A mean does not depend on the order of
# what is in it. If x did not say where each token was read, our model could not
# tell "ema" from "mea": the last letter is the same, and the letters before it
# are the same but for their order.

# %%
def split(x, n):
    """The list x, cut into n parts of equal length."""
    assert len(x) % n == 0, f'{len(x)} numbers do not split into {n} equal parts'
    size = len(x) // n
    return [x[i * size : (i + 1) * size] for i in range(n)]


def new_cache(model):
    """For every layer: a list of keys and a list of values, both empty."""
    return [([], []) for _ in model['layers']]


def multi_head(x, layer, n_head, keys, values):
    """What all heads together find for x (n_embd,) at the positions so far: (n_embd,).

    layer: its matrices, by name.
    keys, values: both (positions, n_head, head_dim); those of x are added to them.
    """
    queries = split(linear(x, layer['attn_wq']), n_head)
    keys.append(split(linear(x, layer['attn_wk']), n_head))
    values.append(split(linear(x, layer['attn_wv']), n_head))
    found = []
    # zip(*keys) has the same keys, as (n_head, positions, head_dim).
    for query, head_keys, head_values in zip(queries, zip(*keys), zip(*values)):
        found += attention(query, head_keys, head_values)  # (n_embd,) in the end
    return linear(found, layer['attn_wo'])


# %% [markdown]
# ### MLP: thinking it over
#
# Attention fetches what positions hand over, and averages it. The MLP
# (*multi-layer perceptron*) can draw conclusions.
#
# Every row of `mlp_fc1` looks for a pattern, perhaps "a vowel, after a
# consonant": its dot product with x is the score of the pattern. If it is below
# 0, the pattern was not found, and relu makes it 0. From these *hidden*
# numbers, which nobody outside sees, `mlp_fc2` makes the note, perhaps "an n is
# likely".
#
# relu is an "if", and weighted sums alone have none: a weighted sum of weighted
# sums is just a weighted sum again. Say that a is 1 if this letter is a vowel,
# else 0, and b the same for the letter before. No weighted sum of a and b can
# find "one of them, but not both". If it is 1 for either alone, it must be 2
# for both. With relu it is easy:
#
# ```text
# a   b      a + b      relu(a - b) + relu(b - a)
# 0   0      0          0
# 1   0      1          1
# 0   1      1          1
# 1   1      2          0
# ```

# %%
def mlp(x, layer):
    """What follows from x (n_embd,): (n_embd,)."""
    hidden = [score.relu() for score in linear(x, layer['mlp_fc1'])]
    return linear(hidden, layer['mlp_fc2'])


# %% [markdown]
# ## 7. Parameters
#
# Here are the matrices that chapter 6 has used, with their usual names:
#
# | name | stands for | shape |
# |---|---|---|
# | `wte` | *word token embedding* | (vocab_size, n_embd) |
# | `wpe` | *word position embedding* | (block_size, n_embd) |
# | `lm_head` | *language model head* | (vocab_size, n_embd) |
# | `attn_wq` | attention: weights for the *query* | (n_embd, n_embd) |
# | `attn_wk`, `attn_wv` | the same for *key* and *value* | (n_embd, n_embd) |
# | `attn_wo` | the same for the *output* | (n_embd, n_embd) |
# | `mlp_fc1` | MLP: the first *fully connected* step | (4 * n_embd, n_embd) |
# | `mlp_fc2` | the second | (n_embd, 4 * n_embd) |
#
# The names say *word* because they come from models whose tokens are pieces of
# words. All numbers are drawn at random, from a normal distribution with mean 0
# and standard deviation 0.08: about two in three are between -0.08 and 0.08.
# Why so small? Large weights make large sums, which would be strong opinions,
# and the first ones can only be wrong.
#
# Why at random? If all numbers were equal, the sixteen numbers of an embedding
# would have the same effect, get the same gradient, and stay equal for ever:
# sixteen numbers that say no more than one.

# %%
class Model(dict):
    """The sizes, matrices and layers of a model, by name."""

    def __repr__(self):  # that of a dict would show thousands of numbers
        return f'<a model of {len(parameters(self))} parameters>'


def new_model(config, vocab_size, rng):
    """A Model with random parameters."""

    def matrix(n_out, n_in, std=0.08):  # taste
        return [[Value(rng.gauss(0, std)) for _ in range(n_in)] for _ in range(n_out)]

    n = config.n_embd
    model = Model(config=config)
    model['wte'] = matrix(vocab_size, n)
    model['wpe'] = matrix(config.block_size, n)
    model['lm_head'] = matrix(vocab_size, n)
    model['layers'] = [
        {
            'attn_wq': matrix(n, n),
            'attn_wk': matrix(n, n),
            'attn_wv': matrix(n, n),
            'attn_wo': matrix(n, n),
            'mlp_fc1': matrix(4 * n, n),  # 4: more patterns to look for; taste
            'mlp_fc2': matrix(n, 4 * n),
        }
        for _ in range(config.n_layer)
    ]
    return model


def parameters(part):
    """All Values in a model, or in a part of it, in order and each of them once."""
    if isinstance(part, Value):
        return [part]
    if isinstance(part, (int, float, str)):  # such as the sizes
        return []
    if isinstance(part, dict):
        part = part.values()
    found = [p for inner in part for p in parameters(inner)]
    return list(dict.fromkeys(found))  # some models, not ours, use one in two places


vocab = vocabulary(['abcdefghijklmnopqrstuvwxyz'])
model = new_model(Config(), len(vocab), random.Random(42))
len(parameters(model))  # 4192

# %% [markdown]
# Untrained, the model has no strong opinions. After BOS, these are the lowest
# and the highest probability of a token; 1/27 is 0.037:

# %%
logits = gpt(model, vocab.index(BOS), 0, new_cache(model))
probabilities = numbers(softmax(logits))
min(probabilities), max(probabilities)  # (0.018, 0.067)

# %% [markdown]
# ## 8. The loss
#
# How surprised was the model? We look up the probability p that it gave to the
# token that really came, and take -log(p):
#
# ```text
# p          1       1/2     1/10    1/27
# -log(p)    0.00    0.69    2.30    3.30
# ```
#
# It is 0 for a prediction that was certain and right, and grows without limit
# as p goes to 0. Untrained, the model gives all logits near 0, since its
# weights are small. So each of 27 tokens gets about 1/27, and the loss starts
# near 3.3.
#
# Why the logarithm? The probability that the model writes a whole name is the
# *product* of the probabilities of its tokens, and the logarithm turns it into
# a *sum*, to which every token adds its own surprise. So the lower the losses,
# the more probable are the real names. We take the mean over a name, so that a
# long name does not count more than a short one.

# %%
def document_loss(model, tokens):
    """The mean loss of all predictions for a document, as one Value."""
    cache = new_cache(model)
    tokens = tokens[: model['config'].block_size + 1]  # the last is only predicted
    losses = []
    for position, (token, target) in enumerate(zip(tokens, tokens[1:])):
        probabilities = softmax(gpt(model, token, position, cache))
        losses.append(-probabilities[target].log())
    return total(losses) / len(losses)


tokens = encode('emma', vocab)
document_loss(model, tokens).data  # 3.23

# %% [markdown]
# ## 9. Adam: from gradients to better parameters
#
# The gradient g of a parameter tells in which direction the loss grows. The
# plain way to lower the loss is `parameter -= rate * g`: *gradient descent*.
# The rate is a small number, because g is only right near the present place.
# *Adam* (Kingma and Ba, 2014) adds two ideas to it, and a correction.
#
# **One name is a noisy hint.** What helps with that name may not help with
# others. So Adam uses m in place of g. It is a running mean of g: at each step
# m keeps 0.85 of itself (`beta1`) and takes in 0.15 of g. What is particular to
# single names cancels out in part, and what they agree about remains.
#
# **Gradients differ a lot in size** from one parameter to the next, and size
# does not say how far a parameter has to go. The parameters of a rare letter,
# for example, have small gradients on average, but are no closer to their best
# values. With one rate for all, some would jump too far while others hardly
# move.
#
# So Adam divides m by the usual size of g. This is the square root of v, and v
# is a running mean of `g * g`, which keeps 0.99 of itself (`beta2`). The
# quotient is about 1 or -1 if the gradients agree, and near 0 if they
# contradict each other. Times the rate, it is the step.
#
# **Running means that start at 0 are too small at first.** Say that g stays the
# same. Then m is too small by g at first, and each step leaves 0.85 of what is
# missing. So after n steps m is `g - 0.85 ** n * g`, or `g * (1 - 0.85 ** n)`.
# Divided by `1 - 0.85 ** n`, it is g, as it should be. The result is called
# m_hat (on paper, m with a hat); v_hat is made in the same way.
#
# ```text
#      g       m         m_hat     v          v_hat    m_hat / sqrt(v_hat)
# three equal gradients:
#      0.5     0.0750     0.500    0.00250    0.250     1.00
#      0.5     0.1388     0.500    0.00498    0.250     1.00
#      0.5     0.1929     0.500    0.00743    0.250     1.00
# two opposite ones:
#      0.5     0.0750     0.500    0.00250    0.250     1.00
#     -0.5    -0.0112    -0.041    0.00498    0.250    -0.08
# ```
#
# Equal gradients move a parameter by the whole rate at each step, however large
# they are. If their signs alternate, it almost stands still.

# %%
class Adam:
    """Moves parameters; keeps a running mean m of the gradient of each, and v of g * g.

    step: how many times they were moved.
    """

    def __init__(self, params):
        self.params = params
        self.m = [0.0] * len(params)
        self.v = [0.0] * len(params)
        self.step = 0

    def update(self, rate, beta1=0.85, beta2=0.99, eps=1e-8):  # all three: taste
        """Move every parameter one step, to lower the loss; set its gradient to 0."""
        self.step += 1
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
            p.grad = 0.0


p = Value(1.0)
p.grad = 0.5
Adam([p]).update(rate=0.01)
p.data  # 0.99

# %% [markdown]
# ## 10. One step of training
#
# Now we have everything for one step. It computes a loss (*forward*), finds the
# gradients (*backward*), moves the parameters (*update*), and clears the tape:

# %%
adam = Adam(parameters(model))

loss = document_loss(model, tokens)
loss.backward()
adam.update(rate=0.01)
Value.tape.clear()

# %% [markdown]
# The tape may go, because its gradients have done their work and the next loss
# will write a new one. What must stay is what has been learnt: the parameters,
# and Adam's m, v and step. With these, training can go on at any time.
#
# Here is the loss of emma, before this step and after it:

# %%
loss_after = document_loss(model, tokens)
Value.tape.clear()
loss.data, loss_after.data  # (3.23, 2.77)

# %% [markdown]
# ## 11. Sampling
#
# To write a name, the model plays the game with itself. It reads BOS, a token
# is drawn according to the predicted probabilities, the model reads it, and so
# on, until BOS is drawn or all positions are used. Taking the most probable
# token each time would give the same name every time.
#
# The *temperature* says how much to leave to chance. All logits are divided by
# it before softmax. Below 1, their differences become larger, and what is
# likely gets likelier; above 1, unlikely tokens get their chance. (In the
# example, the model of chapter 10 writes after its single step.)
#
# ```text
# logits             temperature    probabilities
# 1.0  2.0  3.0      0.5            0.02   0.12   0.87
# 1.0  2.0  3.0      1.0            0.09   0.24   0.67
# 1.0  2.0  3.0      2.0            0.19   0.31   0.51
# ```

# %%
def sample(model, vocab, temperature, rng):
    """A new document, of block_size characters at most."""
    text = ''
    token = vocab.index(BOS)
    cache = new_cache(model)
    tape_before = len(Value.tape)
    for position in range(model['config'].block_size):
        logits = gpt(model, token, position, cache)
        probabilities = softmax([logit / temperature for logit in logits])
        token = rng.choices(range(len(vocab)), weights=numbers(probabilities))[0]
        if vocab[token] == BOS:
            break
        text += vocab[token]
    del Value.tape[tape_before:]  # what was added here; the rest may be needed
    return text


sample(model, vocab, 0.5, random.Random(24))  # 'rxb'

# %% [markdown]
# ## 12. Everything together
#
# Read the documents, make a model, train it, and let it write. The learning
# rate falls from 0.01 towards 0: long steps to get near, short ones to
# settle. (All settings in `main` are taste.) In ten or twenty seconds it
# prints:
#
# ```text
# step    1 / 1000 | mean loss 3.2969
# step  100 / 1000 | mean loss 2.8104
# ...
# step 1000 / 1000 | mean loss 2.5257
# paro
# sara
# ebin
# surin
# ...
# ```
#
# Some names are easier than others, so the loss jumps from one to the next. The
# lines show the mean of the last hundred, or of all if there are fewer. It
# falls from about 3.3 to about 2.5. As exp(-2.5) is about 1/12, the model is
# then as surprised as if it had to guess among 12 tokens, and no longer among
# 27. Names are hard to guess.

# %%
def main(path='input.txt', steps=1000, samples=20, temperature=0.5, seed=42):
    """Train on the documents in a file, then print new ones; returns the model."""
    rng = random.Random(seed)
    docs = load_docs(path)
    rng.shuffle(docs)
    vocab = vocabulary(docs)
    model = new_model(Config(), len(vocab), rng)
    adam = Adam(parameters(model))
    losses = []
    for step in range(steps):
        doc = docs[step % len(docs)]
        loss = document_loss(model, encode(doc, vocab))
        loss.backward()
        adam.update(rate=0.01 * (1 - step / steps))
        Value.tape.clear()
        losses.append(loss.data)
        del loss  # frees its Values before the next loss is computed
        if adam.step % 100 == 0 or adam.step in (1, steps):
            mean_loss = sum(losses[-100:]) / len(losses[-100:])
            print(f'step {adam.step:4} / {steps} | mean loss {mean_loss:.4f}')
    for _ in range(samples):
        print(sample(model, vocab, temperature, rng))
    return model


# %% [markdown]
# `python3 microgpt.py` runs the convenient version of this, from Part II. This
# one: `python3 -c "import microgpt; microgpt.main()"`. In a notebook it runs
# here:

# %%
if 'get_ipython' in globals():  # which only notebooks and IPython define
    model = main()

# %% [markdown]
# ## 13. From here to a chatbot
#
# What you have read is a GPT. What separates it from those that people talk to?
# First of all, size. Here it is beside two models whose figures are published,
# an early one and a large recent one:
#
# | | microgpt | GPT-2 (2019) | Llama 3.1 (2024) |
# |---|---|---|---|
# | parameters | 4,192 | 1.5 billion | 405 billion |
# | layers | 1 | 48 | 126 |
# | `n_embd` | 16 | 1,600 | 16,384 |
# | heads per layer | 4 | 25 | 128 |
# | positions | 16 | 1,024 | 131,072 |
# | vocabulary | 27 characters | 50,257 pieces | 128,256 pieces |
# | read in training | 1,000 names | 40 GB of web pages | 15 trillion tokens |
#
# - **Pieces of words.** Their tokens are frequent sequences of characters,
#   found in the data beforehand, so that a text has fewer tokens.
# - **Tensors and GPUs.** Instead of single Values they compute with *tensors*,
#   whole blocks of numbers, on thousands of processors at once. The chain rule
#   is the same.
# - **Training on conversations.** A model that has only read the web continues
#   any text in some way. To make a chatbot, one trains it further on
#   conversations, and on what people or programs judge to be good answers.
#
# What stays the same: embeddings of tokens, attention, MLP, residual additions,
# the loss -log(p), Adam or a relative, and the game of predicting the next
# token.
#
# To go on, README.md has tested recipes for what people change most often, and
# the same model in PyTorch.
#
# For those who know GPT-2: RMSNorm is used in place of LayerNorm, and relu in
# place of GELU; the embeddings are normed, and not what `lm_head` reads; there
# are no biases, no gains and no dropout, and `lm_head` is a matrix of its own.


# %% [markdown]
# # Part II: the tool
#
# From here on it is ordinary Python around Part I: options, files, pictures.
#
# ## 14. The whole program
#
# First the story; then its parts, in nearly the same order.

# %%
# ruff: noqa: B018, E402, SIM115 - examples are expressions, a log stays open
import argparse
import array
import contextlib
import gc
import hashlib
import itertools
import json
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import shlex
import signal
import struct
import sys
import threading
import time
import unicodedata
from collections import deque

IN_NOTEBOOK = 'ipykernel' in sys.modules
# Values form no cycles, which are all that the collector of CPython looks for.
no_cycles = gc.disable if sys.implementation.name == 'cpython' else gc.enable


class Problem(Exception):
    """What the user can fix: a message of one line, and an exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


class Diverged(Problem):
    """Training has gone wrong: its model is not worth keeping."""


def require(condition, message):
    """A Problem, unless a condition holds."""
    if not condition:
        raise Problem(message)


def escaped(text):
    """A text without the characters that a terminal would obey rather than show."""
    shown = '\n\t\xa0\u3000\u200c\u200d'  # the last two join letters in some scripts
    return ''.join(c if c.isprintable() or c in shown else ascii(c)[1:-1] for c in text)


def columns():
    """The width of the terminal that stderr goes to; 0 if it is not a terminal."""
    if sys.stderr is sys.__stderr__ and os.environ.get('TERM') != 'dumb':
        with contextlib.suppress(OSError):  # a file or a pipe
            return os.get_terminal_size(sys.stderr.fileno()).columns
    return 0


def say(text, end='\n'):
    """Print to stderr, which is for people; stdout is for the names alone."""
    file = sys.stdout if IN_NOTEBOOK else sys.stderr  # a notebook shows stderr in pink
    no_bar = f'\r{" " * (columns() - 1)}\r' if columns() and end == '\n' else ''
    with contextlib.suppress(OSError):  # nobody reads it: the terminal is closed
        print(no_bar + escaped(text), file=file, flush=True, end=end)


def program(argv):
    """The whole story. Returns the exit status."""
    options, run = read_options(argv)
    data = read_data(options, run)
    run = run or Run(options, data.vocab, data.rng, data.digest)
    rehearse(run)
    if options.steps < run.step:
        say(f'{options.load} is at step {run.step} already: nothing to train')
    say(f'vocab size: {len(run.vocab)}\nnum params: {len(run.params)}')
    progress = Progress(run)
    all_well = train_and_save(run, data, progress)
    held_out = judge(run, data, progress)
    if (columns() or IN_NOTEBOOK) and len(progress.curve) >= 10:
        say('\n'.join(loss_chart(progress, held_out)))
    if options.inspect is not None:
        say('\n'.join(picture(run, options.inspect)))
    try:
        print_names(run, data)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains at exit
        if not isinstance(error, BrokenPipeError):  # of `head`, which has seen enough
            raise Problem(f'standard output: {error.strerror}', 1) from None
    return 0 if all_well else 1


# %% [markdown]
# ## 15. Options
#
# Each option has one line in this table; parser, help, ranges, and what a
# checkpoint keeps follow from it. What is not given comes from the checkpoint,
# or else from here.

# %%
def normal(text):
    """A text in its usual form, in which é is one character and never two."""
    return unicodedata.normalize('NFC', text)


class Option(NamedTuple):
    """What there is to know about an option."""

    group: str
    type: type
    default: object
    help: str
    low: float = 0
    high: float = 10 ** 9


DECAYS = {
    'linear': lambda progress: 1 - progress,
    'cosine': lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
OPTIONS = {
    'data': Option('data', str, None, 'documents, one per line (input.txt)'),
    'val_fraction': Option('data', float, 0.1, 'share held out of training', 0, 1),
    'n_layer': Option('model', int, Config().n_layer, 'layers', 1),
    'n_embd': Option('model', int, Config().n_embd, 'numbers in an embedding', 1),
    'n_head': Option('model', int, Config().n_head, 'attention heads', 1),
    'block_size': Option('model', int, Config().block_size, 'positions', 1),
    'seed': Option('model', int, 42, 'seed of all randomness'),
    'steps': Option('training', int, 1000, 'training steps in all'),
    'epochs': Option('training', int, None, 'instead: passes through the data'),
    'batch_size': Option('training', int, 1, 'documents per step', 1),
    'learning_rate': Option('training', float, 0.01, 'at the first step'),
    'decay': Option('training', normal, 'linear', 'its fall: linear or cosine'),
    'grad_clip': Option('training', float, 0.0, 'limit of gradient norm; 0: none'),
    'workers': Option('training', int, 1, 'processes for a batch; 0: all cores', 0, 60),
    'load': Option('files', str, None, 'checkpoint to continue from'),
    'save': Option('files', str, None, 'checkpoint to write'),
    'save_every': Option('files', int, 0, 'also save every N steps; 0: no'),
    'log': Option('files', str, None, 'CSV of step, loss, learning rate'),
    'samples': Option('sampling', int, 20, 'names to make up'),
    'temperature': Option('sampling', float, 0.5, '0: likeliest; 1: as learnt'),
    'top_k': Option('sampling', int, 0, 'only the N likeliest tokens; 0: all'),
    'top_p': Option('sampling', float, 1.0, 'likeliest tokens up to sum X', 0, 1),
    'prompt': Option('sampling', normal, '', 'beginning of every name'),
    'min_length': Option('sampling', int, 0, 'shortest name to print'),
    'max_length': Option('sampling', int, None, 'longest name to print', 1),
    'alphabetic': Option('sampling', bool, False, 'names of letters only'),
    'unique': Option('sampling', bool, False, 'no name twice'),
    'novel': Option('sampling', bool, False, 'no name from the data'),
    'inspect': Option('sampling', normal, None, 'show what the model makes of a text'),
}
OF_THIS_RUN = ('epochs', 'workers', 'load', 'save', 'save_every', 'log', 'inspect')
KEPT = [name for name in OPTIONS if name not in OF_THIS_RUN]  # in a checkpoint
METAVARS = {int: 'N', float: 'X', str: 'FILE', normal: 'TEXT', bool: ''}


def flag(name):
    """The option of a setting: --n-layer for n_layer."""
    return '--' + name.replace('_', '-')


class Parser(argparse.ArgumentParser):
    """A parser of options whose complaints are Problems."""

    def error(self, message):
        raise Problem(message)


def option_parser():
    """The parser of all options; what is not given will be None."""
    example = 'example: python3 microgpt.py --steps 2000 --save names.safetensors'
    parser = Parser(usage='microgpt.py [options]', epilog=example, allow_abbrev=False)
    titles = dict.fromkeys(row.group for row in OPTIONS.values())
    groups = {title: parser.add_argument_group(title) for title in titles}
    for name, row in OPTIONS.items():
        form = {'type': row.type, 'metavar': METAVARS[row.type]}
        if row.type is bool:
            form = {'action': argparse.BooleanOptionalAction}
        default = str(row.default).removesuffix('.0')
        shown = '' if default in ('None', 'False', '') else f' ({default})'
        groups[row.group].add_argument(flag(name), help=row.help + shown, **form)
    return parser


def read_options(argv):
    """All options, and the Run to go on from, or None."""
    arguments = vars(option_parser().parse_args(argv))
    given = {name: value for name, value in arguments.items() if value is not None}
    require(not given.keys() >= {'steps', 'epochs'}, 'not both --steps and --epochs')
    if 'load' not in given:
        return all_options(given), None
    run = load_checkpoint(given['load'])
    go_on(run, given)
    return run.options, run


def go_on(run, given):
    """Give a loaded run the options that are given; a Problem if they do not fit it."""
    saved = run.options
    run.options = all_options({**vars(saved), **given})
    counted = ['batch_size'] if 'epochs' in given else []  # turns epochs into steps
    for name in ('val_fraction', *Config._fields, *counted):
        kept = getattr(saved, name)
        for_good = f'{flag(name)} is fixed at {kept} in {run.options.load}'
        require(getattr(run.options, name) == kept, for_good)
    if run.options.seed != saved.seed:
        run.rng.seed(run.options.seed)
        run.options.seed = saved.seed  # the order of the documents stays
    run.has_other_data = 'data' in given


def all_options(known):
    """The options that are known, with defaults for the others; a Problem if bad."""
    defaults = {name: row.default for name, row in OPTIONS.items()}
    options = argparse.Namespace(**{**defaults, **known})
    check(options)
    return options


def check(options):
    """A Problem if options are out of range or contradict each other."""
    for name, value in vars(options).items():
        if value is not None or OPTIONS[name].default is not None:
            check_value(name, value)
    longest = min(options.block_size, options.max_length or options.block_size)
    require(options.n_embd % options.n_head == 0, '--n-head must divide --n-embd')
    require(options.decay in DECAYS, f'--decay must be one of {", ".join(DECAYS)}')
    require(options.save or not options.save_every, '--save-every needs --save')
    require(len(options.prompt) <= longest, '--prompt is longer than names may be')
    require(options.min_length <= longest, '--min-length is longer than names may be')


def check_value(name, value):
    """A Problem if an option cannot have this value."""
    row = OPTIONS[name]
    kind = {normal: str, float: (float, int)}.get(row.type, row.type)
    is_bad = row.type is str and (not value or b'\0' in os.fsencode(value))
    require(isinstance(value, kind) and not is_bad, f'{flag(name)} cannot be {value!r}')
    if row.type in (int, float):
        limits = f'{flag(name)} must be from {row.low} to {row.high}, not {value}'
        require(row.low <= value <= row.high, limits)


# %% [markdown]
# ## 16. Documents
#
# Some documents are *held out*: training never sees them, nor others with the
# same text, so the loss on them tells what the model has understood, and not
# what it knows by heart.

# %%
NAMES_URL = 'https://raw.githubusercontent.com/karpathy/makemore/master/names.txt'
NAMES_SHA256 = '0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d'
FILE = globals().get('__file__', '')  # a notebook has none, or another


class Data:
    """The documents of a run: for training, held out, and what is known of them."""

    def __init__(self, path, seed, val_fraction):
        try:
            as_written = load_docs(path)
        except UnicodeDecodeError:
            raise Problem(f'{path}: not UTF-8 text') from None
        docs = [normal(doc) for doc in as_written]
        require(docs, f'{path}: no documents in it')
        require('\0' not in ''.join(docs), f'{path}: a binary file, not text')
        self.path = os.path.abspath(path)
        self.n_composed = sum(doc != old for doc, old in zip(docs, as_written))
        self.digest = hashlib.sha256('\n'.join(docs).encode()).hexdigest()
        self.vocab = vocabulary(docs)
        self.docs = docs
        self.rng = random.Random(seed)
        self.rng.shuffle(docs)
        n_held_out = min(int(val_fraction * len(docs)), len(docs) - 1)
        self.train = docs[: len(docs) - n_held_out]
        trained = set(self.train)
        self.held_out = [doc for doc in docs[len(self.train) :] if doc not in trained]


def find_names():
    """The path of input.txt; where there is none, the published names become one."""
    for path in ('input.txt', os.path.join(os.path.dirname(FILE), 'input.txt')):
        if os.path.exists(path):
            return path
    from urllib.request import urlopen  # slow to import, and seldom needed

    say(f'no input.txt: downloading {NAMES_URL}')
    try:
        content = urlopen(NAMES_URL, timeout=20).read()
    except Exception as error:  # whatever a network does
        raise Problem(f'no input.txt, and no download ({error}): see --data') from None
    digest = hashlib.sha256(content).hexdigest()
    require(digest == NAMES_SHA256, 'the download is not the expected file: see --data')
    replace_file('input.txt', content)
    return 'input.txt'


def read_data(options, run):
    """The Data of a run, or None if it only samples and does not need any."""
    needed = options.novel or options.epochs is not None
    if run and run.step >= options.steps and not (needed or run.has_other_data):
        return None
    data = Data(options.data or find_names(), options.seed, options.val_fraction)
    options.data = data.path
    if options.epochs is not None:
        options.steps = -(-options.epochs * len(data.train) // options.batch_size)
        check(options)
    if run:
        check_documents(data, run)
    describe(data, options.block_size)
    return data


def check_documents(data, run):
    """A Problem, or a line, if these are not the documents of a loaded run."""
    check_characters(data.vocab[:-1], run.vocab, data.path)
    if run.digest in ('', data.digest):  # '': of an old checkpoint, which has none
        return
    is_meant = run.has_other_data or run.digest == SEVERAL
    require(is_meant, f'{data.path}: not the documents of this model: see --data')
    say(f'{data.path}: the model has seen other documents, too, so no held-out loss')
    data.held_out = []  # the model may have been trained on some of them
    if run.step < run.options.steps:
        run.digest = SEVERAL


def describe(data, block_size):
    """Say how many documents there are, and what becomes of them."""
    say(f'num docs: {len(data.docs)}')
    if data.n_composed:
        say(f'{data.n_composed} documents were brought to normal form (Unicode NFC)')
    if n_cut := sum(len(doc) >= block_size for doc in data.docs):
        say(f'{n_cut} documents do not fit into --block-size {block_size} and are cut')


def check_characters(text, vocab, where):
    """A Problem that names the characters of a text that are not in the vocabulary."""
    unknown = ''.join(sorted(set(text) - set(vocab[:-1])))
    known = f'{len(vocab) - 1} characters, {visible(vocab[0])} to {visible(vocab[-2])}'
    there = f'not in the vocabulary of the model, which has {known}'
    require(not unknown, f'{where}: {unknown[:40]!r} is {there}')


def document_tokens(doc, run):
    """The tokens of a document; of a long one, only those that the model can use."""
    n = run.options.block_size
    return encode(doc[:n], run.vocab)[: n + 1]


# %% [markdown]
# ## 17. A run and its file
#
# A *checkpoint* holds all that it takes to go on exactly. Its format is
# safetensors, which other tools can read: the length of a header, the header in
# JSON, and then nothing but numbers. No code is in it, and a SHA-256 shows any
# damage. A file is never overwritten:
# a new one is written beside it, completely, and then takes its name in one
# step.

# %%
VERSION = 'microgpt 1'
UNSIGNED = b'0' * 64  # stands in the file while its hash is computed
SEVERAL = 'several'  # stands for the digest of documents that have changed in between
LARGEST = 500_000_000  # bytes of all numbers in a checkpoint


class Run:
    """A model in training, with all that a checkpoint keeps."""

    def __init__(self, options, vocab, rng, digest):
        config = Config(*(getattr(options, name) for name in Config._fields))
        rows = 2 * len(vocab) + config.block_size + 12 * config.n_embd * config.n_layer
        require(24 * config.n_embd * rows <= LARGEST, 'too large for plain Python')
        self.options = options
        self.vocab = vocab
        self.rng = rng
        self.digest = digest  # the SHA-256 of the documents
        self.model = new_model(config, len(vocab), rng)
        self.params = parameters(self.model)
        self.adam = Adam(self.params)
        self.step = 0
        self.stamp = None  # of its file, as this run has left it
        self.has_other_data = False  # than those that it was loaded with


def tensors(part, name=''):
    """The matrices of a model, or of a part of it, by the names they have in files."""
    if isinstance(part, dict):
        inner = {f'{name}.{key}'.lstrip('.'): part[key] for key in part}
    elif isinstance(part, list) and part and isinstance(part[0], dict):
        inner = {f'{name.rstrip("s")}{i}': each for i, each in enumerate(part)}
    else:
        return {name: part} if parameters(part) else {}
    return {key: x for each in inner for key, x in tensors(inner[each], each).items()}


def shape_of(tensor):
    """The lengths of the lists in a tensor, from the outermost to the innermost."""
    return [] if isinstance(tensor, Value) else [len(tensor), *shape_of(tensor[0])]


def entries(model):
    """The header's entry of each tensor: parameters, then Adam's m, then its v."""
    shapes = {id(x): (name, shape_of(x)) for name, x in tensors(model).items()}
    found = {}
    end = 0
    for prefix in ('', 'adam.m.', 'adam.v.'):
        for name, shape in shapes.values():
            start, end = end, end + 8 * math.prod(shape)
            found[prefix + name] = {'dtype': 'F64', 'shape': shape}
            found[prefix + name]['data_offsets'] = [start, end]
    return found


def check_sound(step, values):
    """Diverged, if a step has ruined these numbers."""
    if not all(abs(x) < 1e30 for x in values):
        advice = 'try a lower --learning-rate, or --grad-clip 1'
        raise Diverged(f'step {step} has ruined the model: {advice}', 1)


def pack(run):
    """A run as the bytes of a checkpoint, or Diverged."""
    doubles = [*numbers(run.params), *run.adam.m, *run.adam.v]
    check_sound(run.step, doubles)
    metadata = {
        'version': VERSION,
        'sha256': UNSIGNED.decode(),
        'settings': json.dumps({name: getattr(run.options, name) for name in KEPT}),
        'vocabulary': run.vocab[:-1],
        'step': str(run.step),
        'random': json.dumps(run.rng.getstate()),
        'documents': run.digest,
    }
    header = json.dumps({'__metadata__': metadata, **entries(run.model)}).encode()
    header += b' ' * (-len(header) % 8)
    content = struct.pack('<Q', len(header)) + header
    content += struct.pack(f'<{len(doubles)}d', *doubles)
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(UNSIGNED, digest.encode(), 1)


def unpack(content):
    """The Run in the bytes of a checkpoint; any exception if there is none."""
    digest = content.partition(b'"sha256": "')[2][:64]
    unsigned = content.replace(digest, UNSIGNED, 1)
    is_whole = hashlib.sha256(unsigned).hexdigest().encode() == digest
    require(is_whole, 'it is damaged: its SHA-256 does not match')
    start = 8 + struct.unpack('<Q', content[:8])[0]
    header = json.loads(content[8:start])
    metadata = header.pop('__metadata__')
    settings = json.loads(metadata['settings'])
    require(settings.keys() <= set(KEPT), 'it has settings that are unknown here')
    vocab = metadata['vocabulary'] + BOS
    require(vocab[1:] and vocab == vocabulary([vocab[:-1]]), 'its vocabulary is bad')
    documents = metadata.get('documents', '')
    run = Run(all_options(settings), vocab, random.Random(0), documents)
    require(header == entries(run.model), 'its tensors are not those of this model')
    n = len(run.params)
    doubles = struct.unpack(f'<{3 * n}d', content[start:])
    for p, x in zip(run.params, doubles):
        p.data = x
    run.adam.m, run.adam.v = list(doubles[n : 2 * n]), list(doubles[2 * n :])
    run.adam.step = run.step = int(metadata['step'])
    is_sound = all(abs(x) < 1e30 for x in doubles) and min(run.step, *run.adam.v) >= 0
    require(is_sound, 'its numbers are not those of a model')
    version, words, gauss = json.loads(metadata['random'])
    run.rng.setstate((version, tuple(words), gauss))
    return run


def load_checkpoint(path):
    """The Run in a file; a Problem or an OSError says why there is none."""
    stamp = stamp_of(path)
    with open(path, 'rb') as file:
        content = file.read(250)
        require(VERSION.encode() in content, f'{path}: not a checkpoint of {VERSION}')
        content += file.read(min(2 * LARGEST, os.path.getsize(path)))
    try:
        run = unpack(content)
    except Exception as error:  # whatever somebody has written into it
        reason = str(error) or repr(error)
        raise Problem(f'{path}: cannot be loaded: {reason:.200}') from None
    run.stamp = stamp
    return run


def rehearse(run):
    """A Problem, before training, for what would fail after it."""
    options = run.options
    check_files(options)
    check_characters(options.prompt, run.vocab, '--prompt')
    require(sys.stdout or not options.samples, 'standard output is closed')
    if options.inspect is not None:
        check_characters(options.inspect, run.vocab, '--inspect')
        list(picture(run, options.inspect))
    logits = numbers(gpt(run.model, 0, 0, new_cache(run.model)))  # fails, if ever, now
    if options.save:
        try:
            copy = unpack(pack(run)).model
            same = numbers(gpt(copy, 0, 0, new_cache(copy))) == logits
            require(same, 'it would load as another')
        except Exception as error:
            raise Problem(f'--save: this model cannot be saved: {error!r}') from None


def check_files(options):
    """A Problem if the files of a run could not be written, or would be lost."""
    save, load = (os.path.realpath(path or '') for path in (options.save, options.load))
    paths = [path for path in (options.save, options.log, options.data) if path]
    different = len(set(map(os.path.realpath, paths))) == len(paths)
    require(different, '--data, --save and --log: the same file twice')
    for path in filter(None, (options.save, options.log)):
        folder = os.path.dirname(os.path.realpath(path))
        require(os.access(folder, os.W_OK), f'{path}: cannot be written there')
        is_new = os.path.basename(path) and not stamp_of(path)
        require(is_new or os.path.isfile(path), f'{path}: not a file')
    advice = f'add --load {options.save} to go on with it, or choose another name'
    is_free = not options.save or save == load or not os.path.exists(save)
    require(is_free, f'{options.save}: is there already: {advice}')


def replace_file(path, content, stamp=None):
    """Write bytes to a file that is new or has this stamp: all of them, or none."""
    path = os.path.realpath(path)
    new = os.path.join(os.path.dirname(path), f'.gpt-{os.getpid()}-{time.time_ns()}')
    claim = os.path.join(os.path.dirname(path), f'.gpt-{os.path.basename(path)[:60]}')
    try:
        with open(new, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        open(claim, 'xb').close()  # of two runs, only one can do this
        if stamp_of(path) not in (None, stamp):
            raise OSError(0, 'another program has changed it')
        if os.path.exists(path):
            os.chmod(new, os.stat(path).st_mode)
        os.replace(new, path)
    finally:
        for name in (new, claim):
            with contextlib.suppress(OSError):  # it is gone, or was never made
                os.remove(name)


def stamp_of(path):
    """What changes whenever somebody writes a file; None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size


def save(run, path):
    """Save a run in a file that is new or its own, or say why not. Did it work?"""
    try:
        replace_file(path, pack(run), run.stamp)
        run.stamp = stamp_of(path)
    except OSError as error:
        say(f'microgpt: {path}: not saved: {error.strerror}')
        return False
    return True


def save_anyhow(run):
    """Save a run, if need be elsewhere, and say where. Is it where it should be?"""
    wanted = run.options.save
    now = time.strftime(f'%Y-%m-%d-%H%M%S-{os.getpid()}')
    home = os.path.expanduser(f'~/microgpt-{now}.safetensors')
    for path in (wanted, f'{wanted}-{now}', home):
        if save(run, path):
            break
    else:
        return False
    text = 'zoe' if set('zoe') <= set(run.vocab) else run.vocab[0]
    use = f'look inside: --load {shlex.quote(path)} --inspect {shlex.quote(text)}'
    if run.step < run.options.steps:
        use = f'go on: --load {shlex.quote(path)} --save {shlex.quote(path)}'
    say(f'saved as {path}; {use}')
    return path == wanted


# %% [markdown]
# ## 18. Training
#
# A *batch* is several documents in one step: the mean of their gradients is a
# better hint than one of them. *Clipping* shortens a gradient that is too long,
# so that one odd document cannot throw the parameters off.
#
# The documents of a batch can be shared out among *workers*, processes that run
# at the same time. Their gradients are added up in the order of the documents,
# so any number of workers gives the same result to the last bit. The batch is
# then one Value: the parameters are its inputs, mean gradients its slopes.

# %%
STOPS = {signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)}


def stop_if_asked(signals, run):
    """A Problem if there is a signal; where this is called, the model is whole."""
    if signals:
        cause = 'Ctrl-C' if signals[0] == signal.SIGINT else 'a signal'
        raise Problem(f'stopped by {cause} after step {run.step}', 128 + signals[0])


@contextlib.contextmanager
def noted_signals():
    """A list of the signals to stop that come; Ctrl-C a second later stops at once."""
    received, times = [], []

    def note(number, _):
        times.append(time.monotonic())
        if number == signal.SIGINT and times[-1] > times[0] + 1:
            raise KeyboardInterrupt
        received.append(number)
        if len(received) == 1:
            with contextlib.suppress(RuntimeError):  # in the middle of another print()
                say('stopping cleanly; press Ctrl-C again to stop now, without saving')

    is_main = threading.current_thread() is threading.main_thread()  # others may not
    handlers = {}
    for number in STOPS if is_main else ():
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as under nohup
            handlers[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def finite_loss(model, tokens):
    """document_loss(), or nan where a number has become too large or too small."""
    try:
        return document_loss(model, tokens)
    except (ValueError, ArithmeticError):  # from log(0) and the like
        return Value(math.nan)


def document_gradients(model, params, tokens):
    """The loss of a document, a number, and the gradients of all parameters."""
    loss = finite_loss(model, tokens)
    loss.backward()
    gradients = array.array('d', [p.grad for p in params])
    Value.tape.clear()
    for p in params:
        p.grad = 0.0
    return loss.data, gradients


def work(pipe, config, vocab_size):
    """A worker process: gradients for the documents that come through a pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    no_cycles()
    model = new_model(config, vocab_size, random.Random(0))
    params = parameters(model)
    with contextlib.suppress(EOFError, OSError, MemoryError):  # the other side notices
        while True:
            data, batch = pipe.recv()
            for p, x in zip(params, data):
                p.data = x
            pipe.send([document_gradients(model, params, tokens) for tokens in batch])


def worker_count(options):
    """How many processes are to work on a batch."""
    count = min(options.workers or os.cpu_count() or 1, options.batch_size, 60)
    is_program = vars(sys.modules['__main__']) is globals() and os.path.isfile(FILE)
    if count > 1 and ('get_ipython' in globals() or not is_program):
        say('without workers: only `python3 microgpt.py` can start them')
        return 0
    return count if count > 1 else 0


@contextlib.contextmanager
def workers(run):
    """Pipes to processes that compute gradients; none, if this one is to do it all."""
    processes = {}  # by our end of their pipes
    count = worker_count(run.options)
    context = multiprocessing.get_context('spawn')
    try:
        with contextlib.ExitStack() as stack:
            if count and hasattr(signal, 'pthread_sigmask'):  # Windows has none
                multiprocessing.resource_tracker.ensure_running()  # unblocks, so first
                before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
                stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            for _ in range(count):
                ours, theirs = context.Pipe()
                args = theirs, run.model['config'], len(run.vocab)
                process = context.Process(target=work, args=args, daemon=True)
                process.start()
                processes[ours] = process
                theirs.close()
        yield list(processes)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def shared_gradients(pipes, run, batch, signals):
    """document_gradients() of all documents of a batch, in their order, by workers."""
    data = array.array('d', numbers(run.params))
    order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
    shares = {pipe: order[i :: len(pipes)] for i, pipe in enumerate(pipes)}
    results = {}
    with contextlib.suppress(EOFError, OSError):  # of a pipe without a worker
        for pipe, share in shares.items():
            pipe.send((data, [batch[i] for i in share]))
        while len(results) < len(batch):
            for pipe in multiprocessing.connection.wait(pipes, timeout=0.2):
                results.update(zip(shares[pipe], pipe.recv()))
            stop_if_asked(signals, run)
        return [results[i] for i in range(len(batch))]
    stop_if_asked(signals, run)
    raise Problem('a worker process has died', 1)


def forward(run, batch, pipes, signals):
    """The losses of a batch, and a Value whose backward() sets all gradients."""
    limit = run.options.grad_clip
    if len(batch) == 1 and not limit:  # the usual case, as in Part I
        loss = finite_loss(run.model, batch[0])
        return [loss.data], loss
    if pipes:
        results = shared_gradients(pipes, run, batch, signals)
    else:
        results = []
        for tokens in batch:
            results.append(document_gradients(run.model, run.params, tokens))
            stop_if_asked(signals, run)
    losses, gradients = zip(*results)
    means = [sum(column) / len(batch) for column in zip(*gradients)]
    length = math.sqrt(sum(g * g for g in means)) if limit else 0.0
    if length > limit:
        means = [g * limit / length for g in means]
    return losses, Value(sum(losses) / len(batch), run.params, means)


def train(run, docs, progress, log, signals):
    """Train until all steps are made; log each of them, and save every so often."""
    options, size = run.options, run.options.batch_size
    if options.load:
        lost = '' if options.save else '; without --save, the result will be lost'
        say(f'from step {run.step} on; the rate falls until step {options.steps}{lost}')
    with workers(run) as pipes:
        while run.step < options.steps:
            stop_if_asked(signals, run)
            places = range(run.step * size, (run.step + 1) * size)
            batch = [document_tokens(docs[i % len(docs)], run) for i in places]
            decay = DECAYS[options.decay]
            rate = options.learning_rate * decay(run.step / options.steps)
            for p in run.params:
                p.grad = 0.0
            losses, loss = forward(run, batch, pipes, signals)
            check_sound(run.step + 1, [loss.data])
            loss.backward()
            run.adam.update(rate)
            Value.tape.clear()
            run.step += 1
            log.write(f'{run.step},{loss.data},{rate}\n')
            progress.note(losses, batch)
            del loss
            if options.save_every and run.step % options.save_every == 0:
                save(run, options.save)


def train_and_save(run, data, progress):
    """Train, and save the run whatever has ended its training. Did all go well?"""
    first, ending = run.step, None
    log = Log(run.options.log, first)
    with contextlib.closing(log), noted_signals() as signals:
        try:
            if first < run.options.steps:
                train(run, data.train, progress, log, signals)
        except Diverged:
            raise
        except MemoryError:  # we keep none, for its traceback holds all the memory
            ending = Problem('out of memory', 1)
        except Exception as error:  # whatever it is, the model comes first
            ending = error
        finally:
            Value.tape.clear()
        is_new = run.step > first or not ending
        saved = save_anyhow(run) if run.options.save and is_new else True
        if ending:
            raise ending
        stop_if_asked(signals, run)
    return saved and not log.failed


# %% [markdown]
# ## 19. Progress and log
#
# The loss of one step says little, for some names are hard to guess. So we show
# the mean over the predictions of the last hundred steps, the same kind of mean
# as that over the held-out documents; and names, which show learning best.

# %%
def mean_loss(pairs):
    """The mean over all predictions, from the mean and the number of each document."""
    return sum(loss * n for loss, n in pairs) / sum(n for _, n in pairs)


class Progress:
    """Tells how training goes, and keeps what loss_chart() draws."""

    def __init__(self, run):
        self.run = run
        self.first = run.step
        self.began = time.monotonic()
        self.recent = deque(maxlen=100 * run.options.batch_size)  # for mean_loss()
        self.curve = []  # mean losses at 48 steps or fewer

    def note(self, losses, batch):
        """Take in a step; at each tenth of the run, say how things are."""
        run, step, steps = self.run, self.run.step, self.run.options.steps
        self.recent.extend(zip(losses, [len(tokens) - 1 for tokens in batch]))
        if (step - self.first) % -(-(steps - self.first) // 48) == 0 or step == steps:
            self.curve.append(mean_loss(self.recent))
        if step == self.first + 1 or 10 * step // steps > 10 * (step - 1) // steps:
            check_sound(step, numbers(run.params))
            dice = map(random.Random, range(3))  # the same each time
            names = [sample(run.model, run.vocab, 0.5, rng) for rng in dice]
            done = f'step {step:{len(str(steps))}} / {steps}'
            say(f'{done} | mean loss {mean_loss(self.recent):.4f} | {", ".join(names)}')
        elif columns():
            self.draw_bar(step, steps)

    def draw_bar(self, step, steps):
        """A line that the next one will take the place of."""
        speed = (step - self.first) / max(time.monotonic() - self.began, 1e-9)
        minutes, seconds = divmod(int((steps - step) / speed), 60)
        bar = f'{"█" * (30 * step // steps):░<30}'
        line = f'{bar} {speed:8.2f} steps/s {minutes:4}:{seconds:02} left'
        say(line[: columns() - 1], end='\r')


class Log:
    """A CSV file with a row for each step; an old one is continued."""

    HEADER = 'step,loss,learning_rate\n'

    def __init__(self, path, step):
        self.path = path
        self.failed = False
        self.file = open(path or os.devnull, 'a+', buffering=1, errors='replace')
        self.file.seek(0)
        first = self.file.readline(len(self.HEADER))
        require(first in ('', self.HEADER), f'{path}: not a log of microgpt')
        last = ''.join(deque(self.file, 1)) or f'{step},\n'
        if not last.startswith(f'{step},'):
            say(f'{path}: after {last.strip()!r}, its next row is step {step + 1}')
        self.write('' if first else self.HEADER, '' if last.endswith('\n') else '\n')

    def write(self, *texts):
        """Add to the file. If that fails, say so once, and let training go on."""
        try:
            if not self.failed:
                self.file.writelines(texts)
        except OSError as error:
            say(f'microgpt: {self.path}: {error.strerror}: no more rows')
            self.failed = True

    def close(self):
        with contextlib.suppress(OSError):  # of a row that could not be written
            self.file.close()


def judge(run, data, progress):
    """Say and return the loss on held-out documents; None if there are none."""
    docs = data.held_out[:500] if data else []  # enough to tell, and done in seconds
    if not docs:
        return None
    pairs = []
    for doc in docs:
        tokens = document_tokens(doc, run)
        pairs.append((finite_loss(run.model, tokens).data, len(tokens) - 1))
        Value.tape.clear()  # nobody asks for gradients
    loss, recent = mean_loss(pairs), progress.recent
    trained = f', training loss {mean_loss(recent):.4f}' if recent else ''
    say(f'held-out loss {loss:.4f} nats per token ({len(docs)} documents){trained}')
    return loss if math.isfinite(loss) else None


# %% [markdown]
# ## 20. Pictures
#
# A chart shows how the loss fell; `--inspect TEXT`, letter by letter, what the
# model expected and what came, and where each head of attention looked; and
# `mermaid`, the graph of a computation as in chapter 3, with all slopes.

# %%
def loss_chart(progress, held_out):
    """Lines that show how the loss fell."""
    points = progress.curve
    levels = points if held_out is None else [*points, held_out]
    units = (m * 10.0 ** e for e in range(-3, 30) for m in (1, 2, 5))
    unit = next(unit for unit in units if max(levels) - min(levels) <= 12 * unit)
    for row in range(round(max(levels) / unit), round(min(levels) / unit) - 1, -1):
        rest = '─' if held_out is not None and row == round(held_out / unit) else ' '
        dots = ['●' if row == round(point / unit) else rest for point in points]
        yield f'{row * unit:8.3f} │{"".join(dots)}'.rstrip()
    yield f'    step └{"─" * len(points)}'
    yield f'{progress.first + 1:>11}{progress.run.step:>{len(points) - 1}}'
    yield '● training loss' + ('' if held_out is None else '  ─ held-out loss')


def cells(text):
    """How many columns of a terminal a text takes; East Asian characters take two."""
    wide = sum(unicodedata.east_asian_width(char) in 'WF' for char in text)
    marks = sum(unicodedata.category(char) in ('Mn', 'Me') for char in text)
    return len(text) + wide - marks


def right(text, columns):
    """A text, filled up with spaces on its left."""
    return ' ' * (columns - cells(text)) + text


def visible(char):
    """A character in a form that can be seen and counted in columns."""
    shown = char if char.isprintable() and cells(char) else ascii(char)[1:-1]
    return {BOS: '¶', ' ': '␣'}.get(char, shown)


def watch(run, text):
    """A text's tokens, the probabilities after each, and the weights of each head."""
    global attention
    original = attention
    record = []

    def recorder(query, keys, values):
        n = len(keys)
        one_hot = [[Value(float(i == j)) for j in range(n)] for i in range(n)]
        record.append(numbers(original(query, keys, one_hot)))  # the weights themselves
        return original(query, keys, values)

    tokens = document_tokens(text, run)
    cache = new_cache(run.model)
    predictions = []
    tape_before = len(Value.tape)
    attention = recorder
    try:
        for position, token in enumerate(tokens[:-1]):
            logits = gpt(run.model, token, position, cache)
            predictions.append(numbers(softmax(logits)))
    finally:
        attention = original
        del Value.tape[tape_before:]
    n = run.options.n_layer * run.options.n_head
    return tokens, predictions, [record[i::n] for i in range(n)]


def prediction_table(tokens, predictions, names):
    """Lines: what was read and what came next, how probable, and what was likeliest."""
    wide = max(4, *(cells(names[token]) for token in tokens))
    all_bits = 0.0
    yield f'{"read":>{wide}} {"next":>{wide}}      p  bits  likeliest'
    for read, real, p in zip(tokens, tokens[1:], predictions):
        bits = -math.log2(max(p[real], sys.float_info.min))
        all_bits += bits
        line = f'{right(names[read], wide)} {right(names[real], wide)}'
        line += f'{p[real]:7.1%}{bits:6.2f} '
        for token in sorted(range(len(p)), key=lambda token: -p[token])[:3]:
            line += f' {names[token]}{p[token]:4.0%} {"█" * round(5 * p[token]):5}'
        yield line.rstrip()
    yield f'{all_bits:.2f} bits, {all_bits / len(predictions):.4f} per prediction'


def attention_maps(tokens, maps, n_head, names):
    """Lines: for each layer and head, how much a position takes from those so far."""
    labels = [names[token] for token in tokens[:-1]]
    wide = 1 + max(map(cells, labels))
    labels = labels[: 60 // wide - 1]
    across = wide * (len(labels) + 1)
    yield 'attention, · 0% to █ 100%'
    blocks = []
    for i, rows in enumerate(maps):
        block = [f'L{i // n_head}H{i % n_head}']
        block.append(' ' * wide + ''.join(right(label, wide) for label in labels))
        for label, row in zip(labels, rows):
            shades = ''.join('·░▒▓█'[round(4 * p)] * wide for p in row)
            block.append(f'{right(label, wide - 1)} {shades}')
        blocks.append([line + ' ' * (across - cells(line)) for line in block])
    count = max(1, 62 // (across + 2))  # beside each other, in 60 columns
    for first in range(0, len(blocks), count):
        for lines in zip(*blocks[first : first + count]):
            yield '  '.join(lines).rstrip()


def picture(run, text):
    """Lines that show what a model predicts in a text, and where it looks."""
    tokens, predictions, maps = watch(run, text)
    names = [visible(char) for char in run.vocab]
    n = len(predictions)
    cut = f'; cut to {n} of {len(text) + 1} rows' if n <= len(text) else ''
    yield f'¶ stands for BOS{cut}'
    yield from prediction_table(tokens, predictions, names)
    if len(maps[-1]) == n:  # not where somebody has made a model without attention
        yield from attention_maps(tokens, maps, run.options.n_head, names)


class Mermaid(str):
    """A drawing in the language of Mermaid; a notebook shows the drawing."""

    def _repr_markdown_(self):
        return f'```mermaid\n{self}\n```'


def inputs_of(value):
    """Pairs of an input of a Value and its slope."""
    if value.hand_on is by_partners:
        u, v = value.inputs, value.slopes
        return [*zip(u, numbers(v)), *zip(v, numbers(u))]
    return list(zip(value.inputs, value.slopes))


def mermaid(value, **names):
    """The graph behind a Value, its slopes on the arrows; some Values may have names.

    What no operation has made has a box with corners. A ValueError if it is too large.
    """
    nodes = [value]
    for node in nodes:  # the list grows while we walk through it
        found = dict.fromkeys(x for x, _ in inputs_of(node))
        nodes += [x for x in found if x not in nodes]
        if len(nodes) > 500:
            raise ValueError('more than 500 Values are too many to draw')
    named = {node: f'{name} = ' for name, node in names.items()}
    lines = ['flowchart LR']
    for i, node in enumerate(nodes):
        label = f'"{named.get(node, "")}{node.data:.4g}<br>gradient {node.grad:.4g}"'
        lines.append(f'    {i}({label})' if node.inputs else f'    {i}[{label}]')
        for x, slope in inputs_of(node):
            lines.append(f'    {nodes.index(x)} -- {slope:.4g} --> {i}')
    return Mermaid('\n'.join(lines))


# %% [markdown]
# ## 21. Names
#
# The model knows thousands of names that nobody would call a name: each is
# improbable, but together they are drawn now and then. *Top-k* leaves only the
# k likeliest tokens to choose from. *Top-p* (Holtzman et al., 2019) leaves as
# many as have the probability p together: many in doubt, and one where it is
# sure.

# %%
def restrict(p, top_k, top_p):
    """The tokens that may be drawn, in ascending order; p: their probabilities."""
    kept = sorted(range(len(p)), key=lambda token: -p[token])[: top_k or None]
    sums = list(itertools.accumulate(p[token] for token in kept))
    enough = sum(reached < top_p * sums[-1] for reached in sums) + 1
    return sorted(kept[:enough])


def new_name(run):
    """A name that begins with the prompt and is drawn as the options say."""
    options = run.options
    prompt = iter(options.prompt)

    def choices(tokens, weights):
        char = next(prompt, None)
        if char is not None:
            return [run.vocab.index(char)]
        kept = restrict(weights, options.top_k, options.top_p)
        return run.rng.choices(kept, weights=[weights[token] for token in kept])

    rng = argparse.Namespace(choices=choices)  # sample() asks no more of a generator
    temperature = max(options.temperature, 1e-6)  # which always takes the likeliest
    return normal(sample(run.model, run.vocab, temperature, rng)).rstrip()


def is_wanted(name, options, printed, known):
    """Does a name pass the filters?"""
    kinds = {unicodedata.category(char)[0] for char in name} or {''}
    is_odd = options.alphabetic and not kinds <= {'L', 'M'}  # letters and accents
    is_old = options.unique and name in printed or options.novel and name in known
    max_length = options.max_length or len(name)
    return options.min_length <= len(name) <= max_length and not (is_odd or is_old)


def print_names(run, data):
    """Print names as the options want them; say how many are new, or missing."""
    options, printed = run.options, []
    known = {'', *(data.docs if data else ())}  # a name without letters is not new
    for _ in range(max(1000, 100 * options.samples)):
        if len(printed) == options.samples:
            break
        name = new_name(run)
        if is_wanted(name, options, printed, known):
            print(escaped(name), flush=True)
            printed.append(name)
    if missing := options.samples - len(printed):
        say(f'{missing} names are missing, for too many were refused')
    if printed and data:
        new = sum(name not in known for name in printed)
        say(f'{new} of {len(printed)} names are new (not in the data)')


# %% [markdown]
# ## 22. From the command line

# %%
ONE_AT_A_TIME = threading.Lock()  # for there is one tape for all threads


def cli(argv=None):
    """Run the program. Its exit status: 0, 1 (failed), 2 (bad input), 128 + signal."""
    sys.stderr = sys.stderr or open(os.devnull, 'w', encoding='utf-8')
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
    if not ONE_AT_A_TIME.acquire(blocking=False):
        say('microgpt: another run is under way in this process')
        return 2
    no_cycles()
    try:
        return program(sys.argv[1:] if argv is None else argv)
    except Problem as problem:
        message, status = problem, problem.status
    except KeyboardInterrupt:
        message, status = 'stopped by Ctrl-C', 130
    except MemoryError:
        message, status = 'out of memory', 1
    except OSError as error:
        where = f'{error.filename}: ' if error.filename is not None else ''
        message, status = f'{where}{error.strerror}', 2
    finally:
        gc.enable()
        ONE_AT_A_TIME.release()
    say(f'microgpt: {message}')
    return status


if 'get_ipython' in globals():  # a notebook, whose sys.argv is not for us
    cli(['--inspect=' + load_docs('input.txt')[-1]])
elif __name__ == '__main__':
    sys.exit(cli())
