# %% [markdown]
"""
# microgpt: a GPT in one file of plain Python

This program reads a list of names, learns how names are spelled, and makes up
new ones. Run it with `python microgpt.py`, or read it from here to the end: you
need to know Python and school calculus; everything else is explained. (GPT
stands for "generative pre-trained transformer": it generates text, it is
trained before it is used, and a transformer is a model like that of chapter 6.)

**The game.** Given the letters so far, predict the next one. After "e", "m",
"m" a good player says "most likely a". Whoever can play this game can also
write: predict, draw a letter according to the predicted probabilities, append
it, and predict again. Chatbots play the same game with pieces of words.

**The player.** The *model* is a formula with a few thousand adjustable numbers,
its *parameters*, which are random at first. From the letters so far it computes
a probability for every possible next letter.

**The training.** The *loss* says how surprised the model was by the letters
that really came. For every parameter, calculus tells how fast the loss grows
when this parameter grows: its *gradient*. We move every parameter a little in
the direction that lowers the loss, go on to the next name, and do so a thousand
times.

Part I is the complete algorithm. It follows Andrej Karpathy's microgpt (2026):
on the same data it makes up the same names, with the same losses up to
rounding. Part II makes a comfortable tool of it. Some constants are marked
*taste*: with other values near them the program still works, and learns a
little better or worse. Nearly all others belong to a formula.
"""

# %% [markdown]
# # Part I: the algorithm
#
# ## 1. Data
#
# A *document* is one line of a text file; here, one name. Our file is
# `input.txt`, which lies beside this program and has several thousand names, in
# alphabetical order. Training will read a thousand of them in random order. If
# it took the first thousand, the model would learn that all names begin with
# "a" or "b".
#
# All randomness comes from one generator, `rng`. It starts from a number that
# we choose, the *seed*: with the same seed, a run gives the same names.
# (`main`, in chapter 12, makes the generator and shuffles the documents.)

# %%
import math
import random
from operator import mul
from typing import NamedTuple


def load_docs(path):
    """The documents in a UTF-8 text file: its lines, stripped, empty ones left out."""
    with open(path, encoding='utf-8-sig') as file:  # -sig: skips a byte order mark
        return [line.strip() for line in file if line.strip()]


# %% [markdown]
# ## 2. Tokens
#
# A model computes with numbers, so every character gets one, its *token*: its
# place in the *vocabulary*, the sorted characters of the data. With the letters
# from a to z, the token of a is 0 and that of z is 25.
#
# One more character marks where a name begins and ends. We take the line break,
# since no line contains one, and put it last in the vocabulary: token 26. It is
# usually called BOS, "beginning of sequence". After the last letter, BOS is
# what the model should predict: "here a new name begins".
#
# So emma becomes six tokens, and gives five predictions to practise on:
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
    """All characters of the documents, sorted, and BOS: a place in it is a token."""
    return ''.join(sorted(set(''.join(docs)))) + BOS


def encode(doc, vocab):
    """The tokens of a document, with BOS at both ends."""
    return [vocab.index(char) for char in BOS + doc + BOS]


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
# a ** 3          3 * a ** 2
# exp(a)          exp(a)
# log(a)          1 / a
# relu(a)         1 if a > 0, else 0
# ```
#
# (relu is not from school: relu(a) is a if a is positive, else 0. At 0, where
# it has a corner, we take 0 as the slope. Chapter 6 uses it.)
#
# The *chain rule* makes the gradients of a long computation from these slopes.
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
# This order costs nothing if we keep a *tape*: a list of all Values that an
# operation has made, in the order in which they were made. What is computed
# from c always stands after c. So we only have to read the tape backwards.
#
# The tape grows with every operation. When a computation is over and its
# gradients have been used, `Value.tape.clear()` forgets it. Values that stood
# on the tape keep their numbers, and new operations may use them, but they hand
# on nothing any more. Values that no operation has made, such as parameters,
# never stand on the tape.

# %%
class Value:
    """A number that remembers which Values it was computed from.

    data: the number.
    grad: after loss.backward(), the derivative of the loss with respect to it.
    inputs: the Values that it was computed from; a parameter has none.
    slopes: its derivative with respect to each of the inputs.

    >>> a, b = Value(2.0), Value(3.0)
    >>> loss = a * b + a
    >>> loss.backward()
    >>> loss, a, b
    (Value(data=8.0, grad=1.0), Value(data=2.0, grad=4.0), Value(data=3.0, grad=2.0))
    """

    __slots__ = ('data', 'grad', 'inputs', 'slopes')  # no others: saves time and memory
    tape = []  # one list for all Values

    def __init__(self, data, inputs=(), slopes=()):
        self.data = data
        self.grad = 0.0
        self.inputs = inputs
        self.slopes = slopes
        if inputs:
            Value.tape.append(self)

    def __repr__(self):
        return f'Value(data={self.data}, grad={self.grad})'

    # Every operation has the same shape: Value(result, inputs, slopes).

    def __add__(self, other):
        if not isinstance(other, Value):
            return Value(self.data + other, (self,), (1.0,))
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        if not isinstance(other, Value):
            return Value(self.data * other, (self,), (other,))
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def __pow__(self, n):
        return Value(self.data ** n, (self,), (n * self.data ** (n - 1),))

    def exp(self):
        result = math.exp(self.data)
        return Value(result, (self,), (result,))

    def log(self):
        return Value(math.log(self.data), (self,), (1 / self.data,))

    def relu(self):
        if self.data > 0:
            return Value(self.data, (self,), (1.0,))
        return Value(0.0, (self,), (0.0,))

    # The rest follows from these. (For 2 - a, Python calls a.__rsub__(2).)

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -other

    def __truediv__(self, other):
        return self * other ** -1

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other):
        return -self + other

    def __rtruediv__(self, other):
        return self ** -1 * other

    def backward(self):
        """Find the derivative of this Value with respect to all that it depends on.

        A second call starts at 0 for all Values on the tape. In all others, such as
        parameters, it adds to the gradients that are there: for the sum of several
        losses, one wants the sum of their gradients.
        """
        for result in Value.tape:
            result.grad = 0.0
        self.grad = 1.0
        for result in reversed(Value.tape):
            grad = result.grad
            if grad:  # 0 would hand on nothing but zeros
                for x, slope in zip(result.inputs, result.slopes):
                    x.grad += slope * grad


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
# w1 grows by 1, it grows by x1. So it may as well be *one* Value with 32
# inputs:
#
# ```text
# x1 * w1 + x2 * w2        inputs    x1    x2    w1    w2
#                          slopes    w1    w2    x1    x2
# ```
#
# The gradients are the same as with 31 Values: each of the 15 sums would only
# hand on its gradient times 1. But one Value takes much less time than 31.
#
# Sums of this kind are called *linear*, and the function `linear` makes several
# of them from one x. The shape of a list is written like this: (n,) is a list
# of n Values, and (n_out, n_in) is a list of n_out rows, each of them a list of
# n_in Values. Such a list of rows is a *matrix*.

# %%
def numbers(x):
    """The plain numbers in a list of Values."""
    return [x_i.data for x_i in x]


def linear(x, rows):
    """The dot products of x with every row. x: (n_in,), rows: (n_out, n_in)."""
    x_data = numbers(x)  # read once, for all rows
    results = []
    for row in rows:
        row_data = numbers(row)
        result = sum(map(mul, x_data, row_data))
        results.append(Value(result, [*x, *row], row_data + x_data))
    return results


def dot(u, v):
    """The dot product u[0] * v[0] + u[1] * v[1] + ... of two lists, both (n,)."""
    return linear(u, [v])[0]


def total(x):
    """The sum of a list of Values; every slope is 1."""
    return Value(sum(numbers(x)), x, [1.0] * len(x))


def add(u, v):
    """The list u[0] + v[0], u[1] + v[1], ..."""
    return [u_i + v_i for u_i, v_i in zip(u, v)]


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
# largest is exp(0) = 1. The highest score is taken as a plain number, not as a
# Value. It needs no gradient: whatever we subtract, the result is the same.

# %%
def softmax(scores):
    """Probabilities (n,) from scores (n,)."""
    highest = max(numbers(scores))
    exps = [(score - highest).exp() for score in scores]
    inverse = total(exps) ** -1  # to divide by the total, computed once
    return [exp * inverse for exp in exps]


# %% [markdown]
# ### RMSNorm: keeping numbers at one size
#
# Our model (chapter 6) will have several parts. Each reads a list x and makes
# weighted sums of it, and some of these are scores for softmax. If x is ten
# times as large, so are the sums. Here are three lists that differ only in
# size, and what softmax makes of them:
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
# but a copy that rmsnorm has scaled: the mean of its squares is 1. How strong a
# preference becomes is then up to the weights.
#
# (RMS is the "root mean square": the root of the mean of the squares. We call
# it the *size* of a list. 1e-5 is added so that a list of zeros does not lead
# to a division by zero; any tiny number would do: taste.)

# %%
def rmsnorm(x):
    """x (n,), scaled so that the mean of its squares is 1."""
    mean_square = dot(x, x) / len(x)  # each x_i is an input twice
    scale = (mean_square + 1e-5) ** -0.5
    return [x_i * scale for x_i in x]


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
# where. (One list has room for both. Training can let some numbers tell of the
# token, and others of the position.)
#
# Then every *layer* adds two notes to the notepad: *attention* fetches
# something from the positions read so far, its own included, and the *MLP*
# (explained below) thinks over what is on the notepad. Our model has one layer;
# larger ones have many. Last comes `lm_head`, the *language model head*. It has
# a row for each token, and the dot product of x with this row is the logit of
# the token.
#
# Here is the whole model. The functions `attention` and `mlp` come next, in
# this chapter. `model` is a dict of matrices and layers, and a layer is a dict
# of matrices, too; chapter 7 makes them. `cache` is what attention remembers of
# earlier positions, for each layer; it grows with each call.
#
# Attention and the MLP read a normed copy of the notepad. The notepad itself is
# normed when it begins, and not at the end; chapter 7 says why. (So the first
# attention reads what has been normed twice, which does no harm.)

# %%
def gpt(model, token, position, cache):
    """The logit of each token, (vocab_size,): its score as the next one."""
    x = rmsnorm(add(model['wte'][token], model['wpe'][position]))
    for layer, layer_cache in zip(model['layers'], cache):
        x = add(x, attention(rmsnorm(x), layer, layer_cache))
        x = add(x, mlp(rmsnorm(x), layer))
    return linear(x, model['lm_head'])


# %% [markdown]
# Why is a note *added* to the notepad, and not put in its place? In a sum,
# every term has slope 1. So gradients come back through all layers at full
# strength. And a layer that has not yet learnt anything erases nothing. (This
# is called a *residual* connection.)
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
# both lists are large in the same places. Divided by the square root of their
# length (we come to the reason), it is the score of the position that the key
# belongs to. Softmax makes *attention weights* of the scores. (These weights
# are computed; they are not parameters.) The result is the mean of all values,
# each taken with its attention weight.
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
# the mean is a dot product again: the weights times a *column* of the values.

# %%
def attention_weights(query, keys):
    """How much to take from each position: (positions,), positive, with sum 1.

    query: (n,), keys: (positions, n).
    """
    root = len(query) ** 0.5
    return softmax([fit / root for fit in linear(query, keys)])


# %% [markdown]
# ### Several heads, and a memory
#
# One such search gives one mean, in which all finds are mixed. So several
# *heads* search side by side, each with its own part of query, key and value.
# With `n_embd` 16 and 4 heads, each part has 4 numbers, the `head_dim`. One
# head may look for the last vowel, another for the first letter. (These heads
# have nothing to do with `lm_head`.) What they found stands side by side, too,
# and `attn_wo` makes the note of it: each number can depend on all finds.
#
# ```text
# numbers of q    0 1 2 3    4 5 6 7    8 9 10 11    12 13 14 15
# head               0          1           2             3
# ```
#
# The keys and values of this position are kept in a *cache*, because later
# positions will look at them. This is how positions see earlier ones. The query
# is not kept: only its own position uses it. And no position can see the
# future: the keys and values of later positions are not in the cache yet.
#
# And why do positions need an embedding? A mean does not depend on the order of
# what is in it. If x did not say where each token was read, our model could not
# tell "ema" from "mea": the last letter is the same, and the letters before it
# are the same but for their order.

# %%
class Config(NamedTuple):
    """The sizes of a model (taste): a larger one can learn more and takes longer."""

    n_layer: int = 1  # layers, each of them attention and an MLP
    n_embd: int = 16  # numbers in an embedding, and so on the notepad
    n_head: int = 4  # heads of attention; n_embd is a multiple of it
    block_size: int = 16  # positions; what is longer is cut off there


def new_cache(config):
    """For every layer, for every head: a list of keys and a list of values, empty."""
    return [[([], []) for _ in range(config.n_head)] for _ in range(config.n_layer)]


def split(x, n_head):
    """x (n_embd,), cut into a part for each head: (n_head, head_dim)."""
    head_dim = len(x) // n_head
    return [x[i : i + head_dim] for i in range(0, len(x), head_dim)]


def attention(x, layer, layer_cache):
    """The first note of a layer: what x (n_embd,) finds at the positions so far.

    layer: its matrices, by name.
    layer_cache: its keys and values for every head; those of x are added to it.
    """
    n_head = len(layer_cache)
    q = split(linear(x, layer['attn_wq']), n_head)
    k = split(linear(x, layer['attn_wk']), n_head)
    v = split(linear(x, layer['attn_wv']), n_head)
    found = []
    for query, key, value, (keys, values) in zip(q, k, v, layer_cache):
        keys.append(key)  # (positions, head_dim), now with this position
        values.append(value)
        weights = attention_weights(query, keys)
        columns = zip(*values)  # (head_dim, positions)
        found += linear(weights, columns)  # the weighted mean of values, (head_dim,)
    return linear(found, layer['attn_wo'])


# %% [markdown]
# ### Why the scores are divided by sqrt(length)
#
# First, softmax must not get scores that are too large. Look at scores ten
# times as large as those of the example:
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
# training cannot correct what attention looks at.
#
# Second, dot products get larger when lists get longer. Before training, the
# numbers are random. So what is added is as often negative as positive, and
# cancels in part, but not wholly. Say that we add n numbers, each of them 1 or
# -1. Then the usual size of the sum (root mean square, over many such sums) is:
#
# ```text
# n              1     4     16    64
# size of sum    1     2      4     8
# ```
#
# It is sqrt(n). This is why: the square of a sum has the squares of its terms
# and, twice, the products of any two terms, as in `a * a + b * b + 2 * a * b`.
# The n squares add up to n. The products are as often -1 as 1, and cancel out
# on average. Numbers of another size only change the scale. So dividing by
# sqrt(n) keeps the scores of long lists at the size of those of short ones.
#
# ### MLP: thinking it over
#
# Attention fetches and averages what other positions hand over. The MLP can
# draw conclusions from it. (The letters mean "multi-layer perceptron";
# perceptrons were early artificial neurons.)
#
# Every row of `mlp_fc1` looks for a pattern, perhaps "a vowel, after a
# consonant". Its dot product with x is the strength of the pattern: large if x
# is large in the same places. Patterns with a strength below 0 were not found;
# relu silences them. From the strengths of the others `mlp_fc2` makes the note,
# perhaps "an n is likely".
#
# relu is an "if", and weighted sums alone have none. Without relu, the two
# steps would be a weighted sum of weighted sums, which is just a weighted sum
# again. And no weighted sum can find, for example, "this letter is a vowel or
# the one before was, but not both".

# %%
def mlp(x, layer):
    """The second note of a layer: what follows from x. x: (n_embd,)."""
    strengths = [strength.relu() for strength in linear(x, layer['mlp_fc1'])]
    return linear(strengths, layer['mlp_fc2'])


# %% [markdown]
# ## 7. Parameters
#
# Here are all matrices that chapter 6 has used. Their names are usual in such
# programs:
#
# | name | stands for | shape |
# |---|---|---|
# | `wte` | *word token embedding* | (tokens, n_embd) |
# | `wpe` | *word position embedding* | (block_size, n_embd) |
# | `lm_head` | *language model head* | (tokens, n_embd) |
# | `attn_wq` | attention: weights for the *query* | (n_embd, n_embd) |
# | `attn_wk`, `attn_wv` | the same for *key* and *value* | (n_embd, n_embd) |
# | `attn_wo` | the same for the *output* | (n_embd, n_embd) |
# | `mlp_fc1` | MLP: the first *fully connected* step | (4 * n_embd, n_embd) |
# | `mlp_fc2` | the second | (n_embd, 4 * n_embd) |
#
# *Word*: the names come from models whose tokens are pieces of words. *Fully
# connected*: each sum has all inputs. (That is true of the attention matrices
# as well, but only those of the MLP are called so.) All matrices together have
# 4,192 numbers, drawn at random. Training will give them a meaning: one number
# of the embeddings may come to mean "vowel".
#
# They are drawn from a normal distribution with mean 0 and standard deviation
# 0.08 (taste): about two in three are between -0.08 and 0.08. Why so small?
# Large weights make large sums, which would be strong opinions, and the first
# ones can only be wrong.
#
# So the sum of two embeddings is small too: its size is about 0.1. And the
# first notes are about as large. (For attention: two such matrices, one after
# the other, make sums of 16 products, each of them about `0.08 * sqrt(16)` or
# 0.3 times as large as what it is made from; 0.3 * 0.3 is 0.1. For the MLP it
# is similar.)
#
# These notes are still random, and would hide the embeddings. That is why `gpt`
# norms the sum when the notepad begins: beside numbers of size 1, the first
# notes are small.
#
# In training the notes grow, the notepad not much. In the run of chapter 12,
# the size of the finished notepad was between 1.1 and 1.4, averaged over some
# 70 names at a time. So `lm_head` can read it as it is. GPTs with many layers,
# and so with many notes, norm it once more before `lm_head`.
#
# Why at random? Suppose all parameters were equal. Then the numbers of each
# query would be equal, and those of each key, value and note. Nothing could
# tell them apart, so the weights that make them would be corrected alike, and
# these numbers would stay equal for ever. So would the 16 numbers of an
# embedding. Even if two letters got different numbers, rmsnorm would leave only
# the sign.

# %%
def new_model(config, vocab_size, rng):
    """A model with random parameters: a dict of three matrices and a list of layers."""

    def matrix(n_out, n_in):
        return [[Value(rng.gauss(0, 0.08)) for _ in range(n_in)] for _ in range(n_out)]

    n = config.n_embd
    assert n % config.n_head == 0, 'the heads need parts of equal length'
    return {
        'wte': matrix(vocab_size, n),
        'wpe': matrix(config.block_size, n),
        'lm_head': matrix(vocab_size, n),
        'layers': [
            {
                'attn_wq': matrix(n, n),
                'attn_wk': matrix(n, n),
                'attn_wv': matrix(n, n),
                'attn_wo': matrix(n, n),
                'mlp_fc1': matrix(4 * n, n),  # 4: more patterns to look for; taste
                'mlp_fc2': matrix(n, 4 * n),
            }
            for _ in range(config.n_layer)
        ],
    }


def parameters(model):
    """All parameters of a model in one flat list."""
    matrices = [model['wte'], model['wpe'], model['lm_head']]
    for layer in model['layers']:
        matrices.extend(layer.values())
    return [p for matrix in matrices for row in matrix for p in row]


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
# *product* of the probabilities of its tokens, and the logarithm makes a *sum*
# of it, to which every token adds its own surprise. So the lower the losses,
# the more probable are the real names. We take the mean over a name, so that a
# long name does not count more than a short one. (The unit is the *nat*; with
# the logarithm to base 2 it would be the bit.)

# %%
def document_loss(model, config, tokens):
    """The mean loss of all predictions for a document, in nats, as one Value."""
    cache = new_cache(config)
    losses = []
    positions = range(config.block_size)
    for position, token, target in zip(positions, tokens, tokens[1:]):
        probabilities = softmax(gpt(model, token, position, cache))
        losses.append(-probabilities[target].log())
    return total(losses) / len(losses)


# %% [markdown]
# ## 9. Adam: from gradients to better parameters
#
# The gradient g of a parameter tells in which direction the loss grows. The
# plain way to lower the loss is `parameter -= rate * g`: *gradient descent*.
# The rate is a small number, because g is only right near the present place.
# *Adam* (Kingma and Ba, 2014) adds two ideas to it, and a correction.
#
# **One name is a noisy hint.** What helps with it may not help with others. So
# Adam uses m in place of g. It is a running mean of g: at each step m keeps
# 0.85 of itself (`beta1`) and takes in 0.15 of g. What is particular to single
# names cancels out, and what they agree about remains.
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
# same. Then the distance from m to g is g at first, and each step leaves 0.85
# of it, since m takes in 0.15 of g. So after n steps m is `g - 0.85 ** n * g`,
# or `g * (1 - 0.85 ** n)`. Divided by `1 - 0.85 ** n`, it is g, as it should
# be.
#
# (If g changes, m is a weighted mean of all g so far and of the 0 at the start,
# whose share is `0.85 ** n`. The division leaves the mean of the g alone.) The
# result is called m_hat (on paper, m with a hat); v_hat is made in the same
# way.
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
# they are. After an opposite one it almost stands still. (0.85, 0.99 and the
# tiny eps, which keeps us from dividing by 0, are taste.)

# %%
class Adam:
    """The running means m and v of a list of parameters, and the number of steps."""

    def __init__(self, params):
        self.params = params
        self.m = [0.0] * len(params)
        self.v = [0.0] * len(params)
        self.step = 0

    def update(self, rate, beta1=0.85, beta2=0.99, eps=1e-8):
        """Move every parameter one step, to lower the loss."""
        self.step += 1
        m, v = self.m, self.v
        m_correction = 1 - beta1 ** self.step
        v_correction = 1 - beta2 ** self.step
        for i, p in enumerate(self.params):
            g = p.grad
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            m_hat = m[i] / m_correction
            v_hat = v[i] / v_correction
            p.data -= rate * m_hat / (v_hat ** 0.5 + eps)


# %% [markdown]
# ## 10. Training
#
# This is the loop for which everything so far was made. Each step forgets the
# tape of the step before, computes a loss (*forward*), finds the gradients
# (*backward*), and moves the parameters (*update*). Two functions tell it which
# loss to compute and how large the rate is, so the same loop can train on
# anything.
#
# The tape may go, because its gradients have done their work and the next loss
# will write a new one. What must stay is what has been learnt: the parameters,
# and Adam's m, v and step. With these, training can go on at any time.

# %%
def train(adam, loss_at, rate_at, steps):
    """Train until `steps` steps are made; yields (steps made, loss) after each.

    loss_at(step): the loss to learn from in a step, a Value; the first step is 0.
    rate_at(step): the learning rate of this step.
    """
    while adam.step < steps:
        Value.tape.clear()
        loss = loss_at(adam.step)
        for p in adam.params:
            p.grad = 0.0  # or the gradients of all steps would add up
        loss.backward()
        adam.update(rate_at(adam.step))
        yield adam.step, loss.data


# %% [markdown]
# ## 11. Sampling
#
# To write a name, the model plays the game with itself. It reads BOS, a token
# is drawn according to the predicted probabilities, the model reads it, and so
# on, until BOS is drawn. To take the most probable token each time would give
# the same name every time. There are other ways to choose (Part II has some),
# so `sample` leaves it to a function, `choose`; `main` will use `draw` for it.
#
# The *temperature* says how much to leave to chance. All logits are divided by
# it before softmax. Below 1, their differences become larger, and what is
# likely gets likelier; above 1, unlikely tokens get their chance.
#
# ```text
# logits             temperature    probabilities
# 1.0  2.0  3.0      0.5            0.02   0.12   0.87
# 1.0  2.0  3.0      1.0            0.09   0.24   0.67
# 1.0  2.0  3.0      2.0            0.19   0.31   0.51
# ```
#
# Nobody asks for gradients here, so `draw` works with plain numbers. It is
# softmax without its last step: `rng.choices` needs only the ratios.

# %%
def draw(logits, temperature, rng):
    """A token, drawn at random with the probabilities that the logits give."""
    highest = max(logits)
    ratios = [math.exp((logit - highest) / temperature) for logit in logits]
    return rng.choices(range(len(logits)), weights=ratios)[0]


def sample(model, config, vocab, choose):
    """A new document, of block_size characters at most.

    choose(logits): the next token; the logits are plain numbers.
    """
    text = ''
    token = vocab.index(BOS)
    cache = new_cache(config)
    for position in range(config.block_size):
        Value.tape.clear()  # the numbers in the cache stay; gradients are not needed
        logits = gpt(model, token, position, cache)
        token = choose(numbers(logits))
        if vocab[token] == BOS:
            break
        text += vocab[token]
    return text


# %% [markdown]
# ## 12. Everything together
#
# Read the documents, make a model, train it, and let it write. The learning
# rate starts at 0.01 and falls to 0: long steps to get near, short ones to
# settle. (These numbers are taste, and so are all defaults.) In about ten
# seconds it prints:
#
# ```text
# step    1 / 1000 | loss 3.2411
# step  100 / 1000 | loss 2.6878
# ...
# step 1000 / 1000 | loss 3.4287
# lahiso
# emai
# sehan
# marin
# ...
# ```
#
# Each loss is that of a single name, and some names are easier than others, so
# it jumps. Its mean falls from 3.3 to about 2.5. As exp(-2.5) is about 1/12,
# the model is then as surprised as if it had to guess among 12 letters, and no
# longer among 27. Names are hard to guess.
#
# `python microgpt.py` runs the comfortable version of this, from Part II. To
# run this one: `python -c "import microgpt; microgpt.main()"`.

# %%
def main(path='input.txt', steps=1000, samples=20, temperature=0.5, seed=42):
    """Train on the documents in a file, then print new ones."""
    rng = random.Random(seed)
    docs = load_docs(path)
    rng.shuffle(docs)
    vocab = vocabulary(docs)
    config = Config()
    model = new_model(config, len(vocab), rng)

    def loss_at(step):
        doc = docs[step % len(docs)]
        return document_loss(model, config, encode(doc, vocab))

    def rate_at(step):
        return 0.01 * (1 - step / steps)

    def choose(logits):
        return draw(logits, temperature, rng)

    for step, loss in train(Adam(parameters(model)), loss_at, rate_at, steps):
        if step == 1 or step % 100 == 0:
            print(f'step {step:4} / {steps} | loss {loss:.4f}')
    for _ in range(samples):
        print(sample(model, config, vocab, choose))


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
# - **Pieces of words.** Their tokens are frequent sequences of letters, found
#   in the data beforehand, so that a text has fewer tokens.
# - **Tensors and GPUs.** Instead of single Values they compute with *tensors*,
#   whole blocks of numbers, on thousands of processors at once. The chain rule
#   is the same.
# - **Training on conversations.** A model that has only read the web continues
#   any text in some way. To make a chatbot, one trains it further on
#   conversations, and on what people or programs judge to be good answers.
#
# What stays the same: embeddings, attention, MLP, residual additions, the loss
# -log(p), Adam or a relative, and the game of predicting the next token.


# %% [markdown]
# # Part II: the tool
#
# From here on it is ordinary Python around Part I: options, files, pictures. It
# calls Part I's model, `train` and `sample`, and repeats none of them. The
# story is told by `program`, at the end.
#
# ## 14. Messages and options
#
# What the user can mend is a `Problem`: it ends in one line and an exit status,
# never in a traceback. Below are all options, with their defaults and one line
# of help each. An option that is not given comes from the checkpoint, if there
# is one, or else from here.

# %%
# ruff: noqa: E402 - these imports stand here because Part I does not need them
import argparse
import array
import contextlib
import csv
import datetime
import errno
import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
import unicodedata
from collections import Counter, deque
from multiprocessing.connection import wait


class Problem(Exception):
    """What the user can mend: one line to be told, and the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


class Diverged(Problem):
    """Training has gone wrong, and its parameters are not worth keeping."""

    def __init__(self, what):
        super().__init__(f'{what}: try a lower --learning-rate, or --grad-clip 1', 1)


UNSAFE = ('Cc', 'Cf', 'Cs', 'Zl', 'Zp')  # controls, formats, half characters, breaks


def escaped(text):
    """A text without characters that a terminal would obey instead of showing."""
    harmless = ('\u200c', '\u200d')  # some scripts need these two to join letters
    return ''.join(
        char
        if char in harmless or unicodedata.category(char) not in UNSAFE
        else ascii(char)[1:-1]
        for char in text
    )


def show(text, end='\n'):
    """Print to stderr, which is for people; stdout is for the names alone."""
    with contextlib.suppress(OSError):  # stderr is closed: nobody wants to know
        print(text, file=sys.stderr, end=end, flush=True)


def say(line):
    """Show a line that may have anything in it, such as the name of a file."""
    show(escaped(line))


class Parser(argparse.ArgumentParser):
    """A parser of options whose complaints are Problems."""

    def error(self, message):
        raise Problem(message)


def whole_number(text):
    """An int from an option's text."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number') from None


def number(text):
    """A float from an option's text."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number') from None


def file_name(text):
    """The name of a file from an option's text."""
    if not text or '\0' in text:
        raise argparse.ArgumentTypeError('a file name is needed')
    return text


def normal(text):
    """A text in its usual form, in which é is one character and never two."""
    return unicodedata.normalize('NFC', text)


DECAYS = {
    'linear': lambda progress: 1 - progress,
    'cosine': lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}


# What add_argument() is told about each kind of option.
WHOLE = {'type': whole_number, 'metavar': 'N'}
REAL = {'type': number, 'metavar': 'X'}
FILE = {'type': file_name, 'metavar': 'FILE'}
TEXT = {'type': normal, 'metavar': 'TEXT'}


def option_parser():
    """The parser of all options."""
    parser = Parser(
        prog='microgpt.py',
        usage='python %(prog)s [options]',
        epilog='example: python microgpt.py --steps 2000 --save names.safetensors',
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_training_options(parser)
    add_sampling_options(parser)
    return parser


def add_model_options(parser):
    """What to learn from, and the sizes of the model."""
    add = parser.add_argument_group('data').add_argument
    add('--data', **FILE, help='documents, one per line (input.txt)')
    add('--val-fraction', **REAL, default=0.1, help='share held out of training (0.1)')

    add = parser.add_argument_group('model').add_argument
    size = Config()
    add('--n-layer', **WHOLE, default=size.n_layer, help='layers (1)')
    add('--n-embd', **WHOLE, default=size.n_embd, help='numbers in an embedding (16)')
    add('--n-head', **WHOLE, default=size.n_head, help='attention heads (4)')
    add('--block-size', **WHOLE, default=size.block_size, help='positions (16)')
    add('--seed', **WHOLE, default=42, help='seed of all randomness (42)')


def add_training_options(parser):
    """How to train, and what to read and write."""
    group = parser.add_argument_group('training')
    length = group.add_mutually_exclusive_group().add_argument
    length('--steps', **WHOLE, default=1000, help='training steps in all (1000)')
    length('--epochs', **WHOLE, help='or: passes through all documents')
    add = group.add_argument
    add('--batch-size', **WHOLE, default=1, help='documents per step (1)')
    add('--learning-rate', **REAL, default=0.01, help='at the first step (0.01)')
    add('--decay', choices=DECAYS, default='linear', help='how the rate falls (linear)')
    add('--grad-clip', **REAL, default=0.0, help='longest gradient; 0: no limit (0)')
    add('--workers', **WHOLE, default=1, help='processes for a batch; 0: all cores (1)')

    add = parser.add_argument_group('files').add_argument
    add('--load', **FILE, help='checkpoint to go on from')
    add('--save', **FILE, help='checkpoint to write')
    add('--save-every', **WHOLE, default=0, help='also save every N steps; 0: no (0)')
    add('--log', **FILE, help='CSV of step, loss, learning rate')


def add_sampling_options(parser):
    """Which names to make up."""
    switch = {'action': argparse.BooleanOptionalAction, 'default': False}
    add = parser.add_argument_group('sampling').add_argument
    add('--samples', **WHOLE, default=20, help='names to make up (20)')
    add('--temperature', **REAL, default=0.5, help='0: likeliest; 1: as learnt (0.5)')
    add('--top-k', **WHOLE, default=0, help='only the N likeliest tokens; 0: all (0)')
    add('--top-p', **REAL, default=1.0, help='only the likeliest, X in all (1)')
    add('--prompt', **TEXT, default='', help='beginning of every name')
    add('--min-length', **WHOLE, default=0, help='no shorter names (0)')
    add('--max-length', **WHOLE, help='no longer names')
    add('--alphabetic', **switch, help='names of letters only')
    add('--unique', **switch, help='no name twice')
    add('--novel', **switch, help='no name from the data')
    add('--inspect', **TEXT, help='show what the model makes of a text')


# The options that a checkpoint keeps, with their types; and ranges of numbers.
KEPT = {
    'data': str, 'val_fraction': float, 'n_layer': int, 'n_embd': int, 'n_head': int,
    'block_size': int, 'seed': int, 'steps': int, 'batch_size': int,
    'learning_rate': float, 'decay': str, 'grad_clip': float, 'samples': int,
    'temperature': float, 'top_k': int, 'top_p': float, 'prompt': str,
    'min_length': int, 'max_length': int, 'alphabetic': bool, 'unique': bool,
    'novel': bool,
}
MANY = 10 ** 9
LIMITS = {
    'val_fraction': (0, 1), 'n_layer': (1, 1000), 'n_embd': (1, 10_000),
    'n_head': (1, 10_000), 'block_size': (1, 1_000_000), 'seed': (0, MANY),
    'steps': (0, MANY), 'epochs': (0, MANY), 'batch_size': (1, MANY),
    'learning_rate': (0, MANY), 'grad_clip': (0, MANY), 'workers': (0, 60),
    'save_every': (0, MANY), 'samples': (0, MANY), 'temperature': (0, MANY),
    'top_k': (0, MANY), 'top_p': (0, 1), 'min_length': (0, MANY),
    'max_length': (0, MANY),
}


def flag(name):
    """The option of a setting: --n-layer for n_layer."""
    return '--' + name.replace('_', '-')


def check_ranges(options):
    """A Problem if a number among the options is too small or too large."""
    for name, (low, high) in LIMITS.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise Problem(f'{flag(name)} must be from {low} to {high}, not {value}')
    rows = options.block_size + 12 * options.n_layer * options.n_embd
    if rows * options.n_embd > 20_000_000:
        raise Problem('so many parameters would be too large for plain Python')


def check_options(options):
    """A Problem if options are out of range or contradict each other."""
    check_ranges(options)
    if options.n_embd % options.n_head:
        raise Problem('--n-embd must be a multiple of --n-head')
    if options.save_every and not options.save:
        raise Problem('--save-every needs --save')
    if options.max_length is not None and options.min_length > options.max_length:
        raise Problem('--min-length is above --max-length')
    if len(options.prompt) > options.block_size:
        raise Problem(f'--prompt is longer than --block-size, {options.block_size}')


def read_options(argv):
    """All options, the names of those that were given, and the checkpoint or None."""
    # argparse would drop the --, and some versions of it would then fail.
    if any(argument == '--' or argument.endswith('=--') for argument in argv):
        raise Problem('-- is not an option, nor the value of one')
    parser = option_parser()
    defaults = vars(parser.parse_args([]))
    parser.set_defaults(**dict.fromkeys(defaults))  # so what is not given will be None
    arguments = vars(parser.parse_args(argv))
    given = {name: value for name, value in arguments.items() if value is not None}
    checkpoint = load_checkpoint(given['load']) if 'load' in given else None
    saved = checkpoint.settings if checkpoint else {}
    options = argparse.Namespace(**{**defaults, **saved, **given})
    check_unchanged(options, saved)
    check_options(options)
    return options, given, checkpoint


def check_unchanged(options, saved):
    """A Problem if an option contradicts the settings of the checkpoint."""
    for name in ('val_fraction', *Config._fields):
        if name in saved and getattr(options, name) != saved[name]:
            raise Problem(f'{flag(name)} is {saved[name]} for good in {options.load}')


# %% [markdown]
# ## 15. Documents
#
# Some documents are *held out*: training never sees them, so the loss on them
# tells what the model has understood, and not what it has learnt by heart. A
# document that stands in the file twice, and once in training, is not one of
# them.

# %%
NAMES_URL = 'https://raw.githubusercontent.com/karpathy/makemore/master/names.txt'
HERE = os.path.dirname(os.path.abspath(__file__)) if '__file__' in globals() else ''


class Data:
    """The documents of a run: for training, held out, and what is known of them."""

    def __init__(self, path, seed, val_fraction):
        docs = read_docs(path)
        self.path = os.path.abspath(path)
        if not is_text(self.path):
            raise Problem(f'{path}: a path that is not text cannot be kept')
        self.digest = hashlib.sha256('\n'.join(docs).encode()).hexdigest()
        self.vocab = vocabulary(docs)
        if len(self.vocab) > 100_000:
            raise Problem(f'{path}: more than 100000 different characters')
        self.n_docs = len(docs)
        self.known = set(docs)
        self.rng = random.Random(seed)
        self.rng.shuffle(docs)
        n_held_out = min(int(val_fraction * len(docs)), len(docs) - 1)
        self.train = docs[: len(docs) - n_held_out]
        trained = set(self.train)
        self.held_out = [doc for doc in docs[len(self.train) :] if doc not in trained]


def read_docs(path):
    """The documents in a file, normalised; a Problem if they cannot be that."""
    try:
        docs = [normal(doc) for doc in load_docs(path)]
    except UnicodeDecodeError:
        raise Problem(f'{path}: not a text in UTF-8') from None
    if not docs:
        raise Problem(f'{path}: no documents in it')
    if any('\0' in doc for doc in docs):
        raise Problem(f'{path}: a binary file, not a text')
    return docs


def download_names():
    """Write the names of the published microgpt to input.txt, whole or not at all."""
    import http.client
    import urllib.request  # slow to import, and seldom needed

    say(f'no input.txt: downloading {NAMES_URL}')
    try:
        with urllib.request.urlopen(NAMES_URL, timeout=20) as answer:
            replace_file('input.txt', answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise Problem(f'no input.txt, and no download ({error}): see --data') from None


def find_data(options, given, checkpoint):
    """The path of the documents: as given, as in the checkpoint, or input.txt."""
    if 'data' in given:
        return options.data
    if checkpoint and options.data:
        if not os.path.isfile(options.data) or not os.path.getsize(options.data):
            raise Problem(f'{options.data}, its documents, is gone: see --data')
        return options.data
    for path in ('input.txt', os.path.join(HERE, 'input.txt')):
        if os.path.exists(path):
            return path
    download_names()
    return 'input.txt'


def read_data(options, given, checkpoint):
    """The Data of a run, or None if it only samples and does not need any."""
    needed = {'data', 'epochs'} & given.keys() or options.novel
    if checkpoint and checkpoint.adam.step >= options.steps and not needed:
        return None
    path = find_data(options, given, checkpoint)
    seed = checkpoint.settings['seed'] if checkpoint else options.seed
    data = Data(path, seed, options.val_fraction)
    if checkpoint:
        check_documents(data, options, given, checkpoint)
    return data


def check_documents(data, options, given, checkpoint):
    """A Problem, or a line, if these are not the documents of a checkpoint."""
    check_characters(data.vocab[:-1], checkpoint.vocab, data.path)
    if checkpoint.digest in ('', data.digest):  # '': an old checkpoint, which has none
        return
    if 'data' not in given:
        raise Problem(f'{data.path}: not the documents of {options.load}: see --data')
    say(f'{data.path}: not the documents that {options.load} was trained on')
    data.held_out = []  # the model may have been trained on some of them


def check_characters(text, vocab, where):
    """A Problem that names the characters of a text that are not in the vocabulary."""
    unknown = ''.join(sorted(set(text) - set(vocab[:-1])))
    if unknown:
        raise Problem(f'{where}: not in the vocabulary of the model: {unknown[:40]!r}')


def document_tokens(doc, run):
    """The tokens of a document; of a long one, only as much as the model can read."""
    return encode(doc[: run.config.block_size], run.vocab)


# %% [markdown]
# ## 16. Files that survive
#
# A program can be stopped at any moment, and a disk can be full. So a file is
# never overwritten. A new one is written beside it, completely, and then takes
# its name in one step, which the system does at once or not at all: whatever
# happens, there is a whole file, the old one or the new.

# %%
def replace_file(path, *parts):
    """Write bytes to a file: it has all of them afterwards, or is as it was before."""
    path = os.path.realpath(path)
    handle, new = tempfile.mkstemp(dir=os.path.dirname(path), prefix='.microgpt-')
    try:
        with open(handle, 'wb') as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            shutil.copymode(path, new)
        else:
            os.chmod(new, 0o666 & ~current_umask())
        os.replace(new, path)
    except BaseException:
        os.remove(new)
        raise


def current_umask():
    """The permissions that new files do not get. It can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def check_writable(path, is_ours, what):
    """A Problem unless `path` is free for a new file or holds an old one of our own."""
    path = os.path.realpath(path)
    try:
        if os.path.lexists(path) and not os.path.isfile(path):
            raise Problem(f'{path}: not a file')
        with tempfile.TemporaryFile(dir=os.path.dirname(path)):
            pass
        if os.path.exists(path) or len(os.fsencode(os.path.basename(path))) > 255:
            with open(path, 'rb+'):  # fails too if the name is too long for a new file
                pass
    except OSError as error:
        raise Problem(f'{path}: cannot be written: {error.strerror}') from None
    if os.path.exists(path) and not is_ours(path):
        raise Problem(f'{path}: is there already, and is not {what}')


# %% [markdown]
# ## 17. Checkpoints
#
# A *checkpoint* holds all that it takes to go on exactly: settings, vocabulary,
# parameters, Adam's m, v and step, and the state of the random generator. Its
# format is safetensors, which other tools can read: the length of a header, the
# header in JSON, and then nothing but numbers. Whoever loads one may have got
# it from a stranger. So nothing in it is trusted before it has been checked,
# and nothing is built before its size has been compared with that of the file.

# %%
class BadFile(Problem):
    """A file is not what it should be; and why."""


VERSION = 'microgpt 1'
LARGEST_HEADER = 8_000_000
NO_HASH = '0' * 64  # stands in the header while the hash of the file is computed


class Run:
    """All that a run consists of and a checkpoint keeps."""

    def __init__(self, settings, vocab, rng, digest):
        self.settings = settings  # a dict of the options named in KEPT
        self.vocab = vocab
        self.rng = rng
        self.digest = digest  # the SHA-256 of the documents
        self.last_loss = ''  # that of the last step, as it stands in the log
        self.config = Config(*(settings[name] for name in Config._fields))
        self.model = new_model(self.config, len(vocab), rng)
        self.adam = Adam(parameters(self.model))


def check_sound(run):
    """Diverged, if training has ruined the parameters or Adam's running means."""
    if not all(abs(p.data) < 1e6 for p in run.adam.params):
        raise Diverged(f'step {run.adam.step} has ruined the model')
    if not all(abs(x) < 1e30 for x in itertools.chain(run.adam.m, run.adam.v)):
        raise Diverged(f'step {run.adam.step} has ruined the model')


def tensors(model):
    """A model's matrices by the names that they have in files, in their order."""
    named = {name: model[name] for name in ('wte', 'wpe', 'lm_head')}
    for i, layer in enumerate(model['layers']):
        for name, matrix in layer.items():
            named[f'layer{i}.{name}'] = matrix
    return named


def header_entries(model):
    """The header's entry of each tensor: parameters, then Adam's m, then its v."""
    entries = {}
    end = 0
    for prefix in ('', 'adam.m.', 'adam.v.'):
        for name, matrix in tensors(model).items():
            shape = [len(matrix), len(matrix[0])]
            start, end = end, end + 8 * shape[0] * shape[1]
            entries[prefix + name] = {
                'dtype': 'F64', 'shape': shape, 'data_offsets': [start, end]
            }
    return entries


def swap_if_big_endian(doubles):
    """Turn numbers between this machine's order of bytes and that of files."""
    if sys.byteorder == 'big':
        doubles.byteswap()


def save_checkpoint(path, run):
    """Write a run to a file. An OSError, or Diverged, leaves the file as it was."""
    check_sound(run)
    adam = run.adam
    doubles = array.array('d', numbers(adam.params))
    doubles.extend(adam.m)
    doubles.extend(adam.v)
    swap_if_big_endian(doubles)
    metadata = {
        'version': VERSION,
        'sha256': NO_HASH,
        'settings': json.dumps(run.settings),
        'vocabulary': run.vocab[:-1],
        'step': str(adam.step),
        'loss': run.last_loss,
        'random': json.dumps(run.rng.getstate()),
        'documents': run.digest,
    }
    entries = {'__metadata__': metadata, **header_entries(run.model)}
    header = json.dumps(entries).encode()
    header += b' ' * (-len(header) % 8)
    start = len(header).to_bytes(8, 'little') + header
    digest = hashlib.sha256(start)
    digest.update(doubles)
    signed = start.replace(NO_HASH.encode(), digest.hexdigest().encode(), 1)
    replace_file(path, signed, doubles)


def parse_json(text):
    """What a JSON text says; a BadFile if it is not JSON, or would take for ever."""

    def short_int(digits):
        if len(digits) > 20:
            raise ValueError('a number is too long')
        return int(digits)

    try:
        return json.loads(text, parse_int=short_int)
    except (ValueError, RecursionError):
        raise BadFile('a text in it is not JSON') from None


def read_header(file, size):
    """The header of a safetensors file of ours, as a dict, and its metadata."""
    length = int.from_bytes(file.read(8), 'little')
    if not 0 < length <= min(size - 8, LARGEST_HEADER):
        raise BadFile('not a safetensors file')
    try:
        header = parse_json(file.read(length))
    except BadFile:
        raise BadFile('not a safetensors file') from None
    if not isinstance(header, dict):
        raise BadFile('not a safetensors file')
    metadata = header.pop('__metadata__', None)
    if not isinstance(metadata, dict) or 'microgpt' not in str(metadata.get('version')):
        raise BadFile('a safetensors file, but not one of microgpt')
    if metadata['version'] != VERSION:
        raise BadFile(f'made by another version, {metadata["version"]!r:.40}')
    return header, metadata


def is_checkpoint(path):
    """Is there a checkpoint of ours in this file?"""
    with open(path, 'rb') as file:
        try:
            read_header(file, os.path.getsize(path))
        except BadFile:
            return False
    return True


def checked_settings(text):
    """A checkpoint's settings, complete; a BadFile or Problem if impossible."""
    defaults = vars(option_parser().parse_args([]))
    settings = parse_json(text)
    if not isinstance(settings, dict) or not settings.keys() <= KEPT.keys():
        raise BadFile('it has settings that this version does not know')
    for name, value in settings.items():
        if value is None and defaults[name] is None:
            continue
        if type(value) is not KEPT[name] or not is_text(str(value)):
            raise BadFile(f'its {flag(name)} is {value!r:.40}')
    settings = {**{name: defaults[name] for name in KEPT}, **settings}
    if settings['decay'] not in DECAYS:
        raise BadFile(f'its --decay is {settings["decay"]!r:.40}')
    check_options(argparse.Namespace(**{**defaults, **settings}))
    return settings


def is_text(text):
    """Can a file have this as its name or contents? (JSON may hold half characters.)"""
    return not any(char == '\0' or '\ud800' <= char <= '\udfff' for char in text)


def checked_run(header, metadata, n_doubles):
    """A Run as the metadata say, still with random parameters, or a BadFile."""
    for name in ('settings', 'vocabulary', 'random', 'step', 'sha256'):
        if not isinstance(metadata.get(name), str) or not is_text(metadata[name]):
            raise BadFile(f'it has no {name}')
    chars, step = metadata['vocabulary'], metadata['step']
    if BOS in chars or vocabulary([chars]) != chars + BOS:
        raise BadFile('its vocabulary is impossible')
    if not step.isdecimal() or len(step) > 13:
        raise BadFile('its number of steps is impossible')
    settings = checked_settings(metadata['settings'])
    n_embd = settings['n_embd']
    rows = 2 * len(chars) + settings['block_size'] + 4 * n_embd * settings['n_layer']
    if 3 * n_embd * rows > n_doubles:  # before anything is built, which would be huge
        raise BadFile('it is cut off, or its sizes are wrong')
    digest = str(metadata.get('documents', ''))
    run = Run(settings, chars + BOS, random.Random(0), digest)
    check_tensors(header, header_entries(run.model))
    if 3 * len(run.adam.params) != n_doubles:
        raise BadFile('it is cut off, or too long')
    run.adam.step = int(step)
    run.last_loss = str(metadata.get('loss', ''))
    set_random_state(run.rng, parse_json(metadata['random']))
    return run


def check_tensors(header, expected):
    """A BadFile unless a header has the expected entries, and no others."""
    for name in {**expected, **header}:
        if header.get(name) != expected.get(name):
            raise BadFile(f'its tensor {name!r:.40} is not as it should be')


def set_random_state(rng, state):
    """Give a random generator a state that comes from JSON, or raise a BadFile."""
    try:
        version, words, gauss = state
        rng.setstate((version, tuple(words), gauss))
    except (TypeError, ValueError, OverflowError):
        raise BadFile('its random state is impossible') from None
    if gauss is not None and type(gauss) is not float:
        raise BadFile('its random state is impossible')


def load_checkpoint(path):
    """The Run in a file; a Problem says what is wrong if there is none."""
    if not os.path.isfile(path):
        reason = 'not a file' if os.path.exists(path) else 'no such file'
        raise Problem(f'{path}: {reason}')
    size = os.path.getsize(path)
    try:
        with open(path, 'rb') as file:
            header, metadata = read_header(file, size)
            start = file.tell()
            run = checked_run(header, metadata, (size - start) / 8)
            file.seek(0)
            whole = file.read()
        digest = metadata['sha256']
        unsigned = whole.replace(digest.encode(), NO_HASH.encode(), 1)
        if hashlib.sha256(unsigned).hexdigest() != digest:
            raise BadFile('it is damaged: its SHA-256 is another')
        doubles = array.array('d')
        doubles.frombytes(memoryview(whole)[start:])
        swap_if_big_endian(doubles)
        fill_run(run, doubles)
    except Problem as error:
        raise Problem(f'{path}: {error}') from None
    return run


def fill_run(run, doubles):
    """Give a Run its parameters, m and v; a BadFile if these are not plausible."""
    n = len(doubles) // 3
    for p, x in zip(run.adam.params, doubles):
        p.data = x
    run.adam.m = list(doubles[n : 2 * n])
    run.adam.v = list(doubles[2 * n :])
    try:
        check_sound(run)
    except Diverged:
        raise BadFile('its numbers are beyond reason') from None
    if min(run.adam.v) < 0:
        raise BadFile('its numbers are beyond reason')


# %% [markdown]
# ## 18. Training under control
#
# A *batch* is several documents in one step: the mean of their gradients is a
# better hint than one of them. *Clipping* shortens a gradient that is too long,
# so that one odd document cannot throw the parameters off.
#
# The documents of a batch can be shared out among *workers*, processes that run
# at the same time. Each one computes the gradients of its documents; here they
# are added up in the order of the documents, whoever was first. So any number
# of workers gives the same result to the last bit.
#
# Part I's `train` never hears of all this. A whole batch is one Value for it,
# with the parameters as inputs and their mean gradients as slopes.

# %%
class Stopped(Exception):
    """A signal has asked the program to stop."""


class Signals:
    """Notes Ctrl-C, SIGTERM and SIGHUP, so that training can stop in order.

    Ctrl-C after any of them raises KeyboardInterrupt; the others often come twice, and
    are not counted. Signals that are ignored stay ignored, and outside the main thread,
    where Python allows no handlers, all stays as it is.
    """

    def __init__(self):
        self.received = None
        self.handlers = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self.handlers[number] = signal.signal(number, self.note)
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def note(self, number, _):
        """The handler of all these signals."""
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received:
            self.received = number
            with contextlib.suppress(OSError):  # print() must not be used in a handler
                os.write(2, b'\nstopping in order; Ctrl-C again: stopping at once\n')

    def check(self):
        """Stop here if a signal has come: between documents, the model is whole."""
        if self.received:
            raise Stopped


def finite_loss(model, config, tokens):
    """document_loss(), or nan where a number has become too large or too small."""
    Value.tape.clear()
    try:
        return document_loss(model, config, tokens)
    except (ValueError, ArithmeticError):  # from log(0) and the like
        return Value(math.nan)


def document_gradients(model, config, params, tokens):
    """The mean loss of a document, a number, and the gradients of all parameters."""
    loss = finite_loss(model, config, tokens)
    for p in params:
        p.grad = 0.0
    loss.backward()
    return loss.data, [p.grad for p in params]


def worker_main(pipe, config, vocab_size):
    """A worker process: gradients for the documents that come through a pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    gc.disable()
    model = new_model(config, vocab_size, random.Random(0))
    params = parameters(model)
    with contextlib.suppress(EOFError, OSError, MemoryError):  # it is over, for both
        while True:
            data, batch = pipe.recv()
            for p, x in zip(params, data):
                p.data = x
            for place, tokens in batch:
                loss, gradients = document_gradients(model, config, params, tokens)
                pipe.send((place, loss, array.array('d', gradients)))


@contextlib.contextmanager
def children_ignore_ctrl_c():
    """Processes started here ignore Ctrl-C from the first moment; for us it is kept."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not hasattr(signal, 'pthread_sigmask'):
        yield  # worker_main() alone has to see to it
        return
    from multiprocessing import resource_tracker  # when it starts, it unblocks signals

    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class Workers:
    """Processes that compute the gradients of a batch together."""

    def __init__(self, count, config, vocab_size):
        context = multiprocessing.get_context('spawn')
        self.pipes = []
        self.processes = []
        with children_ignore_ctrl_c():
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=worker_main, args=(theirs, config, vocab_size), daemon=True
                )
                process.start()
                theirs.close()
                self.pipes.append(ours)
                self.processes.append(process)

    def gradients(self, params, batch, signals):
        """document_gradients() for each list of tokens in a batch, in its order."""
        data = array.array('d', numbers(params))
        results = [None] * len(batch)
        missing = len(batch)
        try:
            for pipe, share in zip(self.pipes, self.shares(batch)):
                pipe.send((data, share))
            while missing:
                for pipe in wait(self.pipes, timeout=1):
                    place, loss, gradients = pipe.recv()
                    results[place] = loss, gradients
                    missing -= 1
                signals.check()
        except (EOFError, OSError):
            signals.check()
            raise Problem('a worker process has died', 1) from None
        return results

    def shares(self, batch):
        """A batch's documents and their places, in shares of about equal length."""
        shares = [[] for _ in self.pipes]
        lengths = [0] * len(shares)
        for place, tokens in sorted(enumerate(batch), key=lambda item: -len(item[1])):
            shortest = lengths.index(min(lengths))
            shares[shortest].append((place, tokens))
            lengths[shortest] += len(tokens)
        return shares

    def close(self):
        """End the processes, whatever they are at."""
        for process in self.processes:
            process.terminate()


class Lesson:
    """What train() asks for: the loss and the learning rate of each step."""

    def __init__(self, run, options, docs, signals, workers):
        self.run = run
        self.options = options
        self.docs = docs
        self.signals = signals
        self.workers = workers
        self.nats = 0.0  # of the last step, summed up over its predictions
        self.predictions = 0

    def rate_at(self, step):
        """The learning rate of a step."""
        progress = step / self.options.steps
        return self.options.learning_rate * DECAYS[self.options.decay](progress)

    def loss_at(self, step):
        """The loss of a step as a Value whose backward() finds all gradients."""
        self.signals.check()
        size = self.options.batch_size
        batch = [
            document_tokens(self.docs[i % len(self.docs)], self.run)
            for i in range(step * size, (step + 1) * size)
        ]
        if size == 1 and not self.options.grad_clip:
            loss = finite_loss(self.run.model, self.run.config, batch[0])
            self.note_losses(step, batch, [loss.data])
            return loss
        results = self.gradients(batch)
        self.note_losses(step, batch, [loss for loss, _ in results])
        Value.tape.clear()
        mean_loss = sum(loss for loss, _ in results) / size
        columns = zip(*(gradients for _, gradients in results))
        gradients = self.clipped([sum(column) / size for column in columns])
        return Value(mean_loss, self.run.adam.params, gradients)

    def gradients(self, batch):
        """document_gradients() for each list of tokens in a batch."""
        params = self.run.adam.params
        if self.workers:
            return self.workers.gradients(params, batch, self.signals)
        results = []
        for tokens in batch:
            self.signals.check()
            results.append(
                document_gradients(self.run.model, self.run.config, params, tokens)
            )
        return results

    def clipped(self, gradients):
        """The gradients, shortened where they are longer than --grad-clip."""
        longest = self.options.grad_clip
        length = math.sqrt(sum(g * g for g in gradients)) if longest else 0.0
        if length <= longest:
            return gradients
        return [g * longest / length for g in gradients]

    def note_losses(self, step, batch, losses):
        """Keep the sums for Progress, and see that the losses are numbers."""
        counts = [n_predictions(tokens, self.run.config) for tokens in batch]
        self.nats = sum(loss * n for loss, n in zip(losses, counts))
        self.predictions = sum(counts)
        if not math.isfinite(self.nats):
            raise Diverged(f'step {step + 1}: the loss is no number')


def n_predictions(tokens, config):
    """How many predictions document_loss() makes for these tokens."""
    return min(config.block_size, len(tokens) - 1)


# %% [markdown]
# ## 19. Progress and log
#
# The loss of one step says little, for names differ: some are hard to guess. So
# we show the mean over the predictions of the last hundred steps, which is the
# same kind of mean as that over the held-out documents. And because nothing
# shows learning as well as the names that come out, the line on a terminal ends
# with one that the model makes up at that moment.

# %%
class Screen:
    """What the terminal at stderr can show."""

    def __init__(self):
        self.moves = sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'
        self.colour = self.moves and not os.environ.get('NO_COLOR')
        if sys.stderr.isatty():
            size = os.get_terminal_size(sys.stderr.fileno())
        else:
            size = shutil.get_terminal_size()
        self.columns = min(size.columns or 80, 1000)
        self.unicode = (sys.stderr.encoding or '').lower().startswith('utf')


class Progress:
    """Shows on stderr how training goes, and remembers the losses for loss_chart()."""

    def __init__(self, run, options, screen):
        self.run = run
        self.steps = options.steps
        self.screen = screen
        self.first = run.adam.step
        self.began = self.shown = time.monotonic()
        self.recent = deque(maxlen=100)  # (nats, predictions) of the last steps
        self.curve = [[0.0, 0] for _ in range(400)]  # sums of 400 parts of the run
        self.rng = random.Random(0)  # a stream of its own, so that nothing else changes
        self.name = ''
        self.next_name = 0.0  # when to make up another one

    def mean_loss(self):
        """The mean over all predictions of the last hundred steps."""
        return sum(n for n, _ in self.recent) / sum(n for _, n in self.recent)

    def note(self, step, loss, lesson):
        """Take in a step, and show it if it is time to."""
        self.recent.append((lesson.nats, lesson.predictions))
        part = (step - self.first - 1) * len(self.curve) // (self.steps - self.first)
        self.curve[part][0] += lesson.nats
        self.curve[part][1] += lesson.predictions
        now = time.monotonic()
        if self.screen.moves:
            if now > self.shown + 0.05 or step == self.steps:
                self.shown = now
                self.show_line(step, now)
        elif step % 100 == 0 or step in (self.first + 1, self.steps):
            say(self.line(step, loss, now))

    def speed(self, step, now):
        """How many steps are made in a second, and how much time is left."""
        speed = (step - self.first) / max(now - self.began, 1e-9)
        left = datetime.timedelta(seconds=int((self.steps - step) / speed))
        return f'{speed:.3g} steps/s | {left} left'

    def line(self, step, loss, now):
        """The line of a step, where lines follow each other."""
        return (
            f'step {step:{len(str(self.steps))}} / {self.steps} | loss {loss:.4f} | '
            f'mean {self.mean_loss():.4f} | {self.speed(step, now)}'
        )

    def show_line(self, step, now):
        """Rewrite the line on the terminal, with a bar and a name of this moment."""
        if now > self.next_name:
            check_sound(self.run)
            run = self.run
            self.name = sample(run.model, run.config, run.vocab, self.choose)
            cost = time.monotonic() - now
            self.next_name = now + max(0.5, 20 * cost)
        bar = ('#' * (10 * step // self.steps)).ljust(10, '.')
        line = f'{bar} {step} / {self.steps} | loss {self.mean_loss():.4f} | '
        line += f'{self.speed(step, now)} | {escaped(self.name)}'
        show('\r\033[K' + cut(line, self.screen.columns - 1), end='')

    def choose(self, logits):
        return draw(logits, 0.5, self.rng)

    def end(self):
        """Leave the line that was rewritten."""
        if self.screen.moves and self.recent:
            show('')

    def losses(self):
        """The mean losses of the parts of the run, those without a step left out."""
        return [nats / n for nats, n in self.curve if n]


class Log:
    """A CSV file with a row for each step: step, loss, learning rate."""

    HEADER = 'step,loss,learning_rate\n'

    def __init__(self, path, step, last_loss):
        self.path = path
        self.failed = False
        self.file = None
        if path:
            rows = self.rows_so_far(step, last_loss)
            replace_file(path, ''.join([self.HEADER, *rows]).encode())
            self.file = open(path, 'a', buffering=1, encoding='utf-8', newline='')
            self.writer = csv.writer(self.file, lineterminator='\n')

    def rows_so_far(self, step, last_loss):
        """The rows of the log that is there, if it is that of this run up to a step."""
        rows = read_log(self.path)
        kept = [row for row in rows if int(row[0]) <= step]
        if rows and not is_log_of(rows, kept, step, last_loss):
            raise Problem(f'{self.path}: not the log of this run up to step {step}')
        if len(kept) < len(rows):
            dropped = len(rows) - len(kept)
            say(f'{self.path}: {dropped} rows after step {step} are dropped')
        return [','.join(row) + '\n' for row in kept]

    def write(self, *row):
        """Add a row. If it cannot be written, say so once, and let training go on."""
        if not self.file:
            return
        try:
            self.writer.writerow(row)
        except OSError as error:
            say(f'microgpt: {self.path}: {error.strerror}: no more rows')
            self.failed = True
            self.close()

    def close(self):
        """Close the file, once."""
        if self.file:
            with contextlib.suppress(OSError):  # of a row that could not be written
                self.file.close()
            self.file = None


def read_log(path):
    """The rows of a log as lists of texts, without a last one that was cut off."""
    if not os.path.exists(path):
        return []
    with open(path, encoding='utf-8', errors='replace') as file:
        lines = [line for line in file if line != Log.HEADER]
    if len(lines) > 1 and not lines[-1].endswith('\n'):
        lines.pop()
    rows = [line.rstrip('\n').split(',') for line in lines]
    check_steps([row[0] for row in rows], path)
    return rows


def check_steps(steps, path):
    """A Problem unless these texts are whole numbers, each one more than the last."""
    if not steps:
        return
    first = int(steps[0]) if steps[0].isdecimal() else 0
    if steps != [str(first + i) for i in range(len(steps))]:
        raise Problem(f'{path}: has gaps, or is not a log of microgpt')


def is_log_of(rows, kept, step, last_loss):
    """Is a log that of a run that has made `step` steps? kept: its rows up to there."""
    if step == 0:
        return False
    if not kept:
        return rows[0][0] == str(step + 1)
    return kept[-1][0] == str(step) and last_loss in ('', kept[-1][1])


def is_log(path):
    """Is there nothing in this file, or a log of ours?"""
    with open(path, encoding='utf-8', errors='replace') as file:
        return file.readline(100) in ('', Log.HEADER)


# %% [markdown]
# ## 20. Sampling under control
#
# The model knows thousands of names that nobody would call a name: each is
# improbable, but together they are drawn now and then. *Top-k* leaves only the
# k likeliest tokens to choose from. *Top-p* (Holtzman et al., 2019) leaves as
# many as have the probability p together: many where the model is in doubt, and
# one where it is sure.

# %%
def restrict(logits, temperature, top_k, top_p):
    """The tokens that may be drawn, in ascending order."""
    kept = sorted(range(len(logits)), key=lambda token: -logits[token])
    if temperature < 1e-6:
        return kept[:1]
    if top_k:
        kept = kept[:top_k]
    if top_p < 1:
        highest = logits[kept[0]]
        ratios = [math.exp((logits[token] - highest) / temperature) for token in kept]
        enough = top_p * sum(ratios)
        sums = itertools.accumulate(ratios)
        kept = kept[: 1 + sum(reached < enough for reached in sums)]
    return sorted(kept)  # the order in which Part I draws


def sample_as(options, run):
    """A name that begins with the prompt and is drawn as the options say."""
    prompt = iter(options.prompt)

    def choose(logits):
        char = next(prompt, None)
        if char is not None:
            return run.vocab.index(char)
        kept = restrict(logits, options.temperature, options.top_k, options.top_p)
        if len(kept) == 1:
            return kept[0]
        allowed = [logits[token] for token in kept]
        return kept[draw(allowed, options.temperature, run.rng)]

    return sample(run.model, run.config, run.vocab, choose)


def is_alphabetic(name):
    """Does a name consist of letters, and of the marks that belong to letters?"""
    return name != '' and all(unicodedata.category(char)[0] in 'LM' for char in name)


def why_refused(name, options, printed, known):
    """The option that a name does not satisfy, or None."""
    if len(name) < options.min_length:
        return '--min-length'
    if options.max_length is not None and len(name) > options.max_length:
        return '--max-length'
    if options.alphabetic and not is_alphabetic(name):
        return '--alphabetic'
    if options.unique and name in printed:
        return '--unique'
    if options.novel and name in known:
        return '--novel'
    return None


def make_names(run, options, known):
    """Names as the options want them, one by one; says what is missing at the end."""
    made = set()
    refused = Counter()
    missing = options.samples
    for _ in range(max(1000, 100 * options.samples)):
        if not missing:
            return
        name = normal(sample_as(options, run))
        reason = why_refused(name, options, made, known)
        if reason:
            refused[reason] += 1
            continue
        made.add(name)
        missing -= 1
        yield name
    if missing:
        reasons = ', '.join(f'{n} by {reason}' for reason, n in refused.most_common())
        say(f'{missing} names are missing, for too many were refused: {reasons}')


def print_names(run, options, data):
    """Print the names, and say how many of them are new."""
    if options.samples and sys.stdout is None:
        raise Problem('standard output is closed')
    known = data.known if data else set()
    printed = new = 0
    for name in make_names(run, options, known):
        print(escaped(name), flush=True)
        printed += 1
        new += name not in known
    if printed and data:
        say(f'{new} of {printed} names are new (not in the data)')


# %% [markdown]
# ## 21. Pictures
#
# What has the model learnt, and what is it doing? `--inspect TEXT` shows,
# letter by letter, what it expected and what came, and where each head of
# attention looked. After training on a terminal, a chart shows how the loss
# fell. And `graphviz` draws the graph of a computation, as chapter 3 explains
# it, with the slope on every arrow.

# %%
def cells(text):
    """How many columns of a terminal a text takes; East Asian characters take two."""
    wide = sum(unicodedata.east_asian_width(char) in 'WF' for char in text)
    marks = sum(unicodedata.category(char) in ('Mn', 'Me') for char in text)
    return len(text) + wide - marks


def cut(text, columns):
    """As much of a text as fits into some columns."""
    while cells(text) > columns:
        text = text[:-1]
    return text


def right(text, columns):
    """A text, filled up with spaces on its left."""
    return ' ' * (columns - cells(text)) + text


def visible(char, screen):
    """A character in a form that can be seen and counted in columns."""
    if char == BOS:
        return '¶' if screen.unicode else '|'
    if not char.isprintable() or not (screen.unicode or char.isascii()):
        return ascii(char)[1:-1]
    if unicodedata.category(char)[0] == 'M':
        return '◌' + char
    return char.replace(' ', '␣' if screen.unicode else '_')


@contextlib.contextmanager
def recorded_attention():
    """A list to which every call of attention_weights() adds its result meanwhile."""
    global attention_weights
    original = attention_weights
    record = []

    def recorder(query, keys):
        weights = original(query, keys)
        record.append(numbers(weights))
        return weights

    attention_weights = recorder
    try:
        yield record
    finally:
        attention_weights = original


def watch(run, text):
    """A text's tokens, the probabilities predicted at each of them, and attention maps.

    A map belongs to one head of one layer and has a row of weights for each position.
    """
    config = run.config
    tokens = document_tokens(text, run)[: config.block_size + 1]
    cache = new_cache(config)
    predictions = []
    with recorded_attention() as record:
        for position, token in enumerate(tokens[:-1]):
            Value.tape.clear()
            logits = gpt(run.model, token, position, cache)
            predictions.append(numbers(softmax(logits)))
    n_maps = config.n_layer * config.n_head
    return tokens, predictions, [record[i::n_maps] for i in range(n_maps)]


def prediction_table(tokens, predictions, names, screen):
    """Lines: what was read and what came next, how probable, and what was likeliest."""
    wide = max(cells(names[token]) for token in tokens)
    column = max(4, wide)
    space = screen.columns - 2 * column - 14  # beside the names, p and bits
    shown = max(1, min(3, space // (wide + 6)))  # candidates
    room = space // shown - wide - 7  # for the bar of each, beside its name and percent
    yield f'{"read":>{column}} {"next":>{column}}      p  bits  likeliest'
    for read, real, p in zip(tokens, tokens[1:], predictions):
        line = f'{right(names[read], column)} {right(names[real], column)}'
        line += f'{p[real]:7.1%}{surprise(p[real]):6.2f}'
        for token in sorted(range(len(p)), key=lambda token: -p[token])[:shown]:
            bar = bar_of(p[token], room, screen)
            item = f' {right(names[token], wide)}{p[token]:5.0%}{bar}'
            bold = screen.colour and token == real
            line += f'\033[1m{item}\033[0m' if bold else item
        yield line.rstrip()
    bits = sum(surprise(p[real]) for real, p in zip(tokens[1:], predictions))
    yield f'{bits:.2f} bits, {bits / len(predictions):.4f} per character'


def surprise(p):
    """-log2(p), in bits."""
    return -math.log2(max(p, sys.float_info.min))


def bar_of(p, room, screen):
    """A bar for a probability, with a space before it, if there is room for one."""
    if room < 1:
        return ''
    return ' ' + (('█' if screen.unicode else '@') * round(p * room)).ljust(room)


def attention_maps(tokens, maps, n_head, names, screen):
    """Lines: for each layer and head, how much a position takes from those so far."""
    shades = '·░▒▓█' if screen.unicode else '.:+#@'
    n = len(tokens) - 1
    wide = max(cells(names[token]) for token in tokens)
    step = 2 if wide == 1 and 2 * n + 2 <= screen.columns else wide
    shown = max(1, min(n, (screen.columns - wide - 1) // step))
    note = f'; first {shown} of {n}' if shown < n else ''
    yield f'attention, {shades[0]} 0% to {shades[-1]} 100%{note}'
    labels = [right(names[token], wide) + ' ' for token in tokens[:shown]]
    head = right('', wide + 1) + ''.join(right(names[t], step) for t in tokens[:shown])
    blocks = []
    for i, rows in enumerate(maps):
        title = f'L{i // n_head}H{i % n_head}'.ljust(cells(head))
        shaded = shaded_rows(rows[:shown], shades, step)
        blocks.append([title, head, *map(''.join, zip(labels, shaded))])
    yield from side_by_side(blocks, max(1, (screen.columns + 2) // (cells(head) + 2)))


def shaded_rows(rows, shades, step):
    """Rows of probabilities as rows of shades, filled up to the same width."""
    for row in rows:
        shaded = ''.join(shades[round((len(shades) - 1) * p)] * step for p in row)
        yield shaded.ljust(step * len(rows))


def side_by_side(blocks, count):
    """The lines of blocks of text, `count` blocks beside each other."""
    for first in range(0, len(blocks), count):
        for lines in zip(*blocks[first : first + count]):
            yield '  '.join(lines).rstrip()


def picture(run, text, screen):
    """Lines that show what a model predicts in a text, and where it looks."""
    tokens, predictions, maps = watch(run, text)
    names = [visible(char, screen) for char in run.vocab]
    n = len(predictions)
    note = f'; cut to {n} of {len(text) + 1} rows' if n <= len(text) else ''
    yield f'{names[-1]} stands for BOS{note}'
    yield from prediction_table(tokens, predictions, names, screen)
    yield from attention_maps(tokens, maps, run.config.n_head, names, screen)


def smoothed(losses, columns):
    """A mean of neighbouring losses for each column of a chart."""
    reach = 2 + len(losses) // 20
    ends = [1 + column * len(losses) // columns for column in range(columns)]
    return [statistics.fmean(losses[max(0, end - reach) : end]) for end in ends]


def loss_chart(losses, first, last, held_out, screen):
    """Lines that show how the loss fell from step `first` to `last`."""
    dot, dash, side, corner = '●─│└' if screen.unicode else '*-|+'
    columns = max(1, min(screen.columns - 11, len(losses)))
    points = smoothed(losses, columns)
    levels = points if held_out is None else [*points, held_out]
    low = min(levels)
    per_row = (max(levels) - low) / 9 or 1
    rows = [[' '] * columns for _ in range(10)]
    if held_out is not None:
        rows[round((held_out - low) / per_row)] = [dash] * columns
    for column, point in enumerate(points):
        rows[round((point - low) / per_row)][column] = dot
    for i in range(9, -1, -1):
        yield f'{low + i * per_row:8.4f} {side}{"".join(rows[i])}'.rstrip()
    yield f'    step {corner}{dash * columns}'
    yield f'{first:>11}{last:>{max(2, columns - 1)}}'
    legend = '' if held_out is None else f'  {dash} held-out loss'
    yield f'{dot} training loss{legend}'


def graphviz(value, limit=500):
    """The graph behind a Value in Graphviz's language; a ValueError if it is too large.

    A box for each Value that no operation has made, an ellipse for the others; on each
    arrow the slope.
    """
    found = [value]
    places = {value: 0}
    for result in found:  # the list grows while we walk through it
        for source in result.inputs:
            if source not in places:
                places[source] = len(found)
                found.append(source)
        if len(found) > limit:
            raise ValueError(f'more than {limit} Values are too many to draw')
    lines = ['digraph {', '  rankdir=LR;']
    for i, node in enumerate(found):
        shape = '' if node.inputs else ', shape=box'
        label = f'data {node.data:.4g}\\ngrad {node.grad:.4g}'
        lines.append(f'  {i} [label="{label}"{shape}];')
    for i, result in enumerate(found):
        for source, slope in zip(result.inputs, result.slopes):
            lines.append(f'  {places[source]} -> {i} [label="{slope:.4g}"];')
    return '\n'.join([*lines, '}'])


# %% [markdown]
# ## 22. The program
#
# Get a model, train it, save it, judge it, look into it, and let it write.

# %%
def new_run(options, data):
    """A Run with a new model. Random numbers go on from where Data left off."""
    settings = {name: getattr(options, name) for name in KEPT}
    return Run(settings, data.vocab, data.rng, data.digest)


def settle(run, options, given, data):
    """Bring options, data and a run (new or loaded) into agreement."""
    if options.epochs is not None:
        options.steps = -(-options.epochs * len(data.train) // options.batch_size)
        check_ranges(options)
    if options.load:
        if options.seed != run.settings['seed']:
            run.rng.seed(options.seed)
        options.seed = run.settings['seed']  # the order of the documents stays
    if data:
        options.data = data.path
        run.digest = data.digest
    run.settings = {name: getattr(options, name) for name in KEPT}
    check_characters(options.prompt + (options.inspect or ''), run.vocab, 'the text')


def check_files(options):
    """A Problem, before training, if its results could not be written after it."""
    paths = [path for path in (options.data, options.save, options.log) if path]
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise Problem('--data, --save and --log: the same file twice')
    if options.save:
        check_writable(options.save, is_checkpoint, 'a checkpoint of microgpt')
    if options.log:
        check_writable(options.log, is_log, 'a log of microgpt')


def save(run, options):
    """Save a run if that is wanted; says whether nothing is left to be saved."""
    if not options.save:
        return True
    try:
        if os.path.exists(options.save) and not is_checkpoint(options.save):
            raise FileExistsError(errno.EEXIST, 'another file is there now')
        save_checkpoint(options.save, run)
    except OSError as error:
        say(f'microgpt: {options.save}: not saved: {error.strerror}')
        return False
    return True


def save_anyhow(run, options):
    """Save a run, if need be in a temporary folder, and say where."""
    if save(run, options):
        return True
    folder = tempfile.mkdtemp(prefix='microgpt-')
    path = os.path.join(folder, 'model.safetensors')
    try:
        save_checkpoint(path, run)
        say(f'microgpt: saved as {path}')
    except OSError as error:
        os.rmdir(folder)
        say(f'microgpt: {path}: not saved either: {error.strerror}')
    return False


def train_steps(run, options, data, progress, log, signals):
    """Train until all steps are made, and save every so often."""
    count = min(options.workers or os.cpu_count() or 1, options.batch_size, 60)
    workers = None
    if count > 1 and '__file__' in globals():  # from a notebook, none could be started
        workers = Workers(count, run.config, len(run.vocab))
    lesson = Lesson(run, options, data.train, signals, workers)
    try:
        training = train(run.adam, lesson.loss_at, lesson.rate_at, options.steps)
        for step, loss in training:
            run.last_loss = repr(loss)
            log.write(step, loss, lesson.rate_at(step - 1))
            progress.note(step, loss, lesson)
            if options.save_every and step % options.save_every == 0:
                save(run, options)
        check_sound(run)
    finally:
        progress.end()
        if workers:
            workers.close()


def train_and_save(run, options, data, progress):
    """Train, and save the run whatever has ended its training. Did all go well?"""
    ending = None
    log = Log(options.log, run.adam.step, run.last_loss)
    with Signals() as signals:
        try:
            train_steps(run, options, data, progress, log, signals)
        except Stopped:
            pass
        except MemoryError:
            ending = Problem('out of memory', 1)
        except Diverged:
            raise
        except Exception:
            save_anyhow(run, options)
            raise
        finally:
            log.close()
            Value.tape.clear()
        saved = save_anyhow(run, options)
    if signals.received:
        name = {signal.SIGINT: 'Ctrl-C'}.get(signals.received, 'a signal')
        message = f'stopped by {name} after step {run.adam.step}'
        raise Problem(message, 128 + signals.received)
    if ending:
        raise ending
    return saved and not log.failed


def judge(run, data, progress):
    """The loss on held-out documents, or None: the mean over their predictions."""
    if not data or not data.held_out:
        return None
    nats = predictions = 0
    docs = data.held_out[:500]  # enough to tell, and done in a second or two
    for doc in docs:
        tokens = document_tokens(doc, run)
        n = n_predictions(tokens, run.config)
        nats += finite_loss(run.model, run.config, tokens).data * n
        predictions += n
    loss = nats / predictions
    line = f'held-out loss {loss:.4f} nats per token ({len(docs)} documents)'
    if progress.recent:
        line += f', training loss {progress.mean_loss():.4f}'
    say(line)
    return loss if math.isfinite(loss) else None


def program(argv):
    """The whole story. Returns the exit status."""
    if sys.version_info < (3, 9):
        raise Problem('Python 3.9 or newer is needed')
    options, given, checkpoint = read_options(argv)
    data = read_data(options, given, checkpoint)
    run = checkpoint or new_run(options, data)
    settle(run, options, given, data)
    check_files(options)
    screen = Screen()
    progress = Progress(run, options, screen)
    if data:
        say(f'num docs: {data.n_docs}')
    say(f'vocab size: {len(run.vocab)}')
    say(f'num params: {len(run.adam.params)}')
    if run.adam.step < options.steps:
        done = train_and_save(run, options, data, progress)
    else:
        done = save_anyhow(run, options)
    held_out = judge(run, data, progress)
    if screen.moves and run.adam.step - progress.first >= 10:
        chart = loss_chart(
            progress.losses(), progress.first + 1, run.adam.step, held_out, screen
        )
        show('\n'.join(chart))
    if options.inspect is not None:
        show('\n'.join(picture(run, options.inspect, screen)))
    try:
        print_names(run, options, data)
    except BrokenPipeError:
        drop_stdout_if_broken()  # `head` has seen enough
    return 0 if done else 1


def cli(argv=None):
    """Run the program. Its exit status: 0, 1 (failed), 2 (bad input), 128 + signal."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, 'w')
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        with no_collector():
            return program(sys.argv[1:] if argv is None else argv)
    except (Problem, KeyboardInterrupt, MemoryError, OSError) as error:
        message, status = message_and_status(error)
    drop_stdout_if_broken()
    say('microgpt: ' + message)
    return status


@contextlib.contextmanager
def no_collector():
    """Without Python's search for cyclic garbage: Values never form a cycle."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def message_and_status(error):
    """The line that tells the user of an error, and the exit status."""
    if isinstance(error, Problem):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return 'stopped by Ctrl-C', 130
    if isinstance(error, MemoryError):
        return 'out of memory', 1
    what = f'{error.filename}: ' if error.filename else ''
    return f'{what}{error.strerror or error}', 2


def drop_stdout_if_broken():
    """Python would complain at exit about output that it could not write."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


if __name__ == '__main__':
    if '__file__' in globals():
        sys.exit(cli())
    cli([])  # in a notebook: the arguments are its kernel's, not ours
