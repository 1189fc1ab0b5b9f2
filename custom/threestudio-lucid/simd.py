"""Vectors of LANES numbers for numba: what a kernel says in them becomes a few machine instructions.

LLVM turns plain loops into vector code too, where it sees that it may, which differs from processor to
processor and from one line to the next. With these types there is nothing to see. Of float32:

    v = load(array, i)               array[i : i + LANES] of a float32 array, C-contiguous, [.]
    store(array, i, v)
    x = read(array, i)               array[i], without numba's look at whether i counts from the end
    write(array, i, x)
    v + w, v - w, v * w, v / w, -v   of vectors; of two, one may be a number
    v < w, v <= w, v > w, v >= w     masks; m & n of two of them
    select(mask, v, w)               v where the mask is set, else w
    numbers()                        0, 1, ... LANES - 1
    minimum(v, w), maximum(v, w), sqrt(v), floor(v), exp2(v), spread(x)
    total(v), any_lane(mask)
    totals(v0, ... v7)               a vector of the totals
    load_every(array, i, step)       array[i], array[i + step], ...
    store_ranges(array, i, v, w)     bits [v, w) of the bytes of array[i : i + LANES]; 0 <= v, w <= 8
    with_bit(array, i, k)            a 32-bit integer: bit j is bit k of the byte array[i + j]
    lowest_bit(n)                    the number of the lowest bit set in a uint64

And of float64, for arithmetic that needs the digits, with float64 numbers beside them: operators, select,
minimum, maximum, sqrt, floor, spread. They come from float32 arrays [., step], of whose rows they
hold one column, and go back there; lanes beyond the last row repeat it:

    d = gather(array, row, last_row, step, i)        array[step * row + i], array[step * (row + 1) + i], ...
    scatter(array, row, last_row, step, i, d)        rounded towards zero if the array holds int32

select, minimum, maximum, sqrt and floor of plain numbers do the same, so that one formula can serve
for both.

On a processor with shorter registers LLVM splits a vector in two or four.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 8  # one register of AVX, two of NEON or SSE

# The sign of a zero does not matter, a * b + c may be fused; sums keep the order they have. Infinities and
# NaNs stay what they are: minimum and maximum of a NaN and a number are the number, if it comes second.
_FLAGS = ("contract", "nsz", "arcp")
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


class _Vector(types.Type):
    """The numba type of a vector."""

    def __init__(self, name: str, kind: ir.VectorType):
        super().__init__(f"{name} x {LANES}")
        self.kind = kind


floats, doubles, mask = _Vector("floats", _FLOATS), _Vector("doubles", _DOUBLES), _Vector("mask", _MASK)
_NUMBERS = {floats: types.float32, doubles: types.float64}


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: _Vector):
        super().__init__(manager, type_, type_.kind)


def _joined(*kinds: types.Type) -> _Vector | None:
    """The type of vectors that vectors and numbers come to together, if there is one."""
    for vector, number in _NUMBERS.items():
        if vector in kinds and all(kind in (vector, number) for kind in kinds):
            return vector
    return None


# --- operators ------------------------------------------------------------------------------------


def _spread(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    """A vector as it is, a number in all lanes."""
    if value.type == kind:
        return value
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _operator(function: Any, emit: Any, result: types.Type | None = None) -> None:
    """Teaches numba what `function` does with vectors, or with a vector and a number.

    `result`: the type that comes out, if not that of the vectors.
    """

    @type_callable(function)
    def type_(context: Any) -> Any:
        return lambda *kinds: (vector := _joined(*kinds)) and (result or vector)

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        kind = _joined(*sig.args).kind
        return emit(builder, *(_spread(builder, arg, kind) for arg in args))

    for vector, number in _NUMBERS.items():
        for pair in ((vector, vector), (vector, number), (number, vector)):
            lower_builtin(function, *pair)(lower)


def _arithmetic(name: str) -> Any:
    return lambda builder, a, b: getattr(builder, name)(a, b, flags=_FLAGS)


def _comparison(sign: str) -> Any:
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


_operator(operator.add, _arithmetic("fadd"))
_operator(operator.sub, _arithmetic("fsub"))
_operator(operator.mul, _arithmetic("fmul"))
_operator(operator.truediv, _arithmetic("fdiv"))
_operator(operator.iadd, _arithmetic("fadd"))  # v += w makes a new v
_operator(operator.lt, _comparison("<"), mask)
_operator(operator.le, _comparison("<="), mask)
_operator(operator.gt, _comparison(">"), mask)
_operator(operator.ge, _comparison(">="), mask)


@type_callable(operator.neg)
def _type_neg(context: Any) -> Any:
    return lambda a: a if a in _NUMBERS else None


for _vector in _NUMBERS:

    @lower_builtin(operator.neg, _vector)
    def _lower_neg(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        return builder.fneg(args[0], flags=_FLAGS)


@type_callable(operator.and_)
def _type_and(context: Any) -> Any:
    return lambda a, b: mask if a == b == mask else None


@lower_builtin(operator.and_, mask, mask)
def _lower_and(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
    return builder.and_(*args)


# --- functions ------------------------------------------------------------------------------------


def _is_flat(array: types.Type, dtype: types.Type) -> bool:
    return isinstance(array, types.Array) and (array.dtype, array.ndim, array.layout) == (dtype, 1, "C")


def _address(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
    """Where lane 0 of (array, index, ...) is."""
    array = context.make_array(sig.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """array[index : index + LANES]; nothing checks that it is there."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        address = builder.bitcast(_address(context, builder, sig, args), _FLOATS.as_pointer())
        return builder.load(address, align=4)

    return (floats(array, index), lower) if _is_flat(array, types.float32) else None


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """array[index : index + LANES] = vector."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        address = builder.bitcast(_address(context, builder, sig, args), _FLOATS.as_pointer())
        builder.store(args[2], address, align=4)
        return context.get_dummy_value()

    fits = _is_flat(array, types.float32) and vector == floats
    return (types.void(array, index, vector), lower) if fits else None


@intrinsic
def read(typing: Any, array: Any, index: Any) -> Any:
    """array[index] for index >= 0."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        return builder.load(_address(context, builder, sig, args), align=4)

    return (types.float32(array, index), lower) if _is_flat(array, types.float32) else None


@intrinsic
def write(typing: Any, array: Any, index: Any, number: Any) -> Any:
    """array[index] = number, for index >= 0."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        number = context.cast(builder, args[2], sig.args[2], types.float32)
        builder.store(number, _address(context, builder, sig, args), align=4)
        return context.get_dummy_value()

    return (types.void(array, index, number), lower) if _is_flat(array, types.float32) else None


@intrinsic
def load_every(typing: Any, array: Any, index: Any, step: Any) -> Any:
    """array[index : index + LANES * step : step]."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        address, vector = _address(context, builder, sig, args), ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            value = builder.load(builder.gep(address, [builder.mul(args[2], args[2].type(lane))]))
            vector = builder.insert_element(vector, value, ir.IntType(32)(lane))
        return vector

    return (floats(array, index, step), lower) if _is_flat(array, types.float32) else None


@intrinsic
def store_ranges(typing: Any, array: Any, index: Any, first: Any, last: Any) -> Any:
    """Lane by lane, a byte with the bits first <= bit < last set, both rounded towards zero."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        ones = ir.Constant(_INTS, [-1] * LANES)
        from_first, from_last = (builder.shl(ones, builder.fptosi(arg, _INTS)) for arg in args[2:])
        bits = builder.and_(from_first, builder.not_(from_last))
        kind = ir.VectorType(ir.IntType(8), LANES)
        address = builder.bitcast(_address(context, builder, sig, args), kind.as_pointer())
        builder.store(builder.trunc(bits, kind), address, align=1)
        return context.get_dummy_value()

    return (types.void(array, index, first, last), lower) if _is_flat(array, types.uint8) else None


@intrinsic
def with_bit(typing: Any, array: Any, index: Any, bit: Any) -> Any:
    """Which of the 32 bytes from array[index] on have a bit set, as the bits of an integer."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        kind = ir.VectorType(ir.IntType(8), 32)
        value = builder.shl(ir.IntType(8)(1), builder.trunc(args[2], ir.IntType(8)))
        one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), 32), [0] * 32)
        ones = builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)
        address = builder.bitcast(_address(context, builder, sig, args), kind.as_pointer())
        found = builder.and_(builder.load(address, align=1), ones)
        found = builder.icmp_unsigned("!=", found, ir.Constant(kind, [0] * 32))
        return builder.bitcast(found, ir.IntType(32))

    return (types.uint32(array, index, bit), lower) if _is_flat(array, types.uint8) else None


@intrinsic
def lowest_bit(typing: Any, number: Any) -> Any:
    """The number of the lowest bit set in a uint64, which must not be 0."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        return builder.cttz(args[0], ir.IntType(1)(1))

    return (types.int64(types.uint64), lower) if number == types.uint64 else None


def _row_addresses(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> list[ir.Value]:
    """Where the lanes of (array, row, last_row, step, i) are."""
    array = context.make_array(sig.args[0])(context, builder, args[0])
    _, row, last_row, step, offset, *_ = args
    addresses = []
    for lane in range(LANES):
        own = builder.add(row, row.type(lane))
        own = builder.select(builder.icmp_signed("<", own, last_row), own, last_row)
        addresses.append(builder.gep(array.data, [builder.add(builder.mul(own, step), offset)]))
    return addresses


@intrinsic
def gather(typing: Any, array: Any, row: Any, last_row: Any, step: Any, offset: Any) -> Any:
    """array[step * row + offset] of LANES rows, or of the last row once more; float32, as doubles."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        vector = ir.Constant(_FLOATS, ir.Undefined)
        for lane, address in enumerate(_row_addresses(context, builder, sig, args)):
            vector = builder.insert_element(vector, builder.load(address, align=4), ir.IntType(32)(lane))
        return builder.fpext(vector, _DOUBLES)

    sizes = [types.int64] * 4
    return (doubles(array, *sizes), lower) if _is_flat(array, types.float32) else None


@intrinsic
def scatter(typing: Any, array: Any, row: Any, last_row: Any, step: Any, offset: Any, vector: Any) -> Any:
    """array[step * row + offset] = the lanes of a vector of doubles; those beyond the last row are equal."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        whole = array.dtype == types.int32
        vector = builder.fptosi(args[5], _INTS) if whole else builder.fptrunc(args[5], _FLOATS)
        for lane, address in enumerate(_row_addresses(context, builder, sig, args)):
            builder.store(builder.extract_element(vector, ir.IntType(32)(lane)), address, align=4)
        return context.get_dummy_value()

    flat = _is_flat(array, types.float32) or _is_flat(array, types.int32)
    return (types.void(array, *[types.int64] * 4, vector), lower) if flat and vector == doubles else None


@intrinsic
def spread(typing: Any, x: Any) -> Any:
    """A number in all lanes."""
    vector = {number: vector for vector, number in _NUMBERS.items()}.get(x)
    if vector is None:
        return None
    return vector(x), lambda context, builder, sig, args: _spread(builder, args[0], vector.kind)


@intrinsic
def numbers(typing: Any) -> Any:
    """0, 1, ... LANES - 1."""
    values = ir.Constant(_FLOATS, [float(i) for i in range(LANES)])
    return floats(), lambda context, builder, sig, args: values


@intrinsic
def select(typing: Any, where: Any, vector: Any, other: Any) -> Any:
    """Lane by lane: vector where the mask is set, else the other; either may be a number, or all three."""
    if where == types.boolean:
        return vector(where, vector, vector), lambda context, builder, sig, args: builder.select(*args)
    result = _joined(vector, other) or floats  # of two numbers, which must be float32

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        return builder.select(args[0], *(_spread(builder, arg, result.kind) for arg in args[1:]))

    return result(where, vector, other), lower


def _unary(name: str, doc: str) -> Any:
    """An intrinsic of LLVM on one vector or number."""

    def typed(typing: Any, x: Any) -> Any:
        def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
            kind = args[0].type
            bits = _NUMBERS.get(x, x).bitwidth
            suffix = f"v{LANES}f{bits}" if x in _NUMBERS else f"f{bits}"
            function = builder.module.declare_intrinsic(f"{name}.{suffix}", (), ir.FunctionType(kind, [kind]))
            return builder.call(function, args, fastmath=_FLAGS)

        return x(x), lower

    typed.__doc__ = doc
    return intrinsic(typed)


sqrt = _unary("llvm.sqrt", "The square root of each lane.")
floor = _unary("llvm.floor", "Each lane rounded down.")


def _fold(builder: ir.IRBuilder, v: ir.Value, join: Any) -> ir.Value:
    """One number of all lanes: halves joined with each other, so that the order is the same everywhere."""
    width = LANES
    while width > 1:
        width //= 2
        index, nothing = ir.VectorType(ir.IntType(32), width), ir.Constant(v.type, ir.Undefined)
        low, high = (
            builder.shuffle_vector(v, nothing, ir.Constant(index, [first + i for i in range(width)]))
            for first in (0, width)
        )
        v = join(low, high)
    return builder.extract_element(v, ir.IntType(32)(0))


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum of the lanes."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        return _fold(builder, args[0], lambda a, b: builder.fadd(a, b, flags=_FLAGS))

    return types.float32(floats), lower


@intrinsic
def totals(typing: Any, v0: Any, v1: Any, v2: Any, v3: Any, v4: Any, v5: Any, v6: Any, v7: Any) -> Any:
    """Lane k holds the sum of the lanes of the k-th vector."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        # Lane i of the k-th vector of a level holds a part of the sum of argument 2^level k + i % 2^level.
        vectors, width = args, 1
        while width < LANES:
            lower_part = [i + (LANES - width) * (i // width % 2) for i in range(LANES)]
            upper_part = [i + width for i in lower_part]
            vectors = [
                builder.fadd(
                    *(builder.shuffle_vector(v, w, ir.Constant(_INTS, i)) for i in (lower_part, upper_part)),
                    flags=_FLAGS,
                )
                for v, w in zip(vectors[::2], vectors[1::2], strict=True)
            ]
            width *= 2
        return vectors[0]

    return floats(*[floats] * LANES), lower


@intrinsic
def any_lane(typing: Any, where: Any) -> Any:
    """Whether a mask is set anywhere."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask), lower


@intrinsic
def _times_power_of_two(typing: Any, vector: Any, exponent: Any) -> Any:
    """vector * 2^n, where n is in the low bits of `exponent`: added to the bits of vector's own exponent."""

    def lower(context: Any, builder: ir.IRBuilder, sig: Any, args: tuple) -> ir.Value:
        value, n = (builder.bitcast(arg, _INTS) for arg in args)
        return builder.bitcast(builder.add(value, builder.shl(n, ir.Constant(_INTS, [23] * LANES))), _FLOATS)

    return floats(floats, floats), lower


# A float this large has no bits after the point: adding it rounds to whole numbers, in the low bits.
_ROUNDS = np.float32(1.5 * 2**23)

# 2^f for |f| <= 1/2, degree 5, exact at 0, the largest relative error as small as it gets: 9.1e-8.
E0, E1, E2, E3, E4, E5 = (
    np.float32(c) for c in (1.0, 0.6931469776, 0.2402224208, 0.0555073375, 0.0096715128, 0.0013264725)
)


@njit(error_model="numpy")
def exp2(t):
    """2^t of each lane, for |t| < 126; no number to rely on for others."""
    shifted = t + _ROUNDS
    f = t - (shifted - _ROUNDS)
    ff = f * f  # pairs of terms side by side: half the time that one after the other takes
    mantissa = ((E5 * f + E4) * ff + (E3 * f + E2)) * ff + (E1 * f + E0)
    return _times_power_of_two(mantissa, shifted)


@njit(error_model="numpy")
def minimum(v, w):
    """The smaller of two, lane by lane; one may be a number, or both."""
    return select(v < w, v, w)


@njit(error_model="numpy")
def maximum(v, w):
    """The larger of two, lane by lane; one may be a number, or both."""
    return select(v > w, v, w)
