#!/usr/bin/env python3
"""Translates one kernel of PTX to C, which the null driver runs (see driver.c and threads.h).

    translate.py KERNEL.ptx > KERNEL.c

Each thread of a cube is a function that goes on where it stopped: at barriers and where a warp works together. Registers are
members of a struct, addresses are those of the process. What no kernel of this project needs is missing and an error.
"""

import re
import sys

TYPES = "b8 u8 s8 b16 u16 s16 b32 u32 s32 b64 u64 s64 f16 bf16 f16x2 bf16x2 f32 f64 pred b128".split()
FIELD = {"b8": "u8", "b16": "u16", "b32": "u32", "b64": "u64", "f16x2": "u32", "bf16x2": "u32", "f16": "h", "bf16": "u16"}
C_TYPE = {"f32": "float", "f64": "double", "f16": "_Float16", "pred": "uint8_t"}
KNOWN = {"%laneid": "(t->linear % 32)", "%warpid": "(t->linear / 32)", "WARP_SZ": "32u"}
UNARY = {"ex2": "exp2f", "lg2": "log2f", "rcp": "1 / ", "sqrt": "sqrtf", "rsqrt": "1 / sqrtf", "sin": "sinf", "cos": "cosf", "tanh": "tanhf"}
BINARY = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
BOTH = {"and": "&&", "or": "||", "xor": "^"}
WIDTH = {"pred": 8, "f16": 16, "bf16": 16, "f16x2": 32, "bf16x2": 32}


def field(type):
    return FIELD.get(type, type)


def c_type(type):
    type = field(type)
    if type == "h":
        return "_Float16"
    if type in C_TYPE:
        return C_TYPE[type]
    return {"u": "uint", "s": "int"}[type[0]] + type[1:] + "_t"


def width(type):
    return WIDTH.get(type) or int(re.sub(r"\D", "", type))


class Kernel:
    def __init__(self, text):
        text = re.sub(r"//[^\n]*", "", text)
        text = re.sub(r"^\s*\.(loc|file)\b[^\n]*$", "", text, flags=re.M)
        text = re.split(r"^\s*\.section", text, flags=re.M)[0]
        head, rest = re.split(r"\.entry\s+", text, maxsplit=1)
        if ".func" in head:
            raise NotImplementedError("functions")
        name, rest = rest.split("(", 1)
        params, rest = rest.split(")", 1)
        self.name = name.strip()
        body = rest[rest.index("{") + 1 : rest.rindex("}")]
        self.params = {p.split()[-1].split("[")[0]: i for i, p in enumerate(params.split(",")) if p.strip()}
        self.registers, self.kinds, self.symbols, self.globals, self.lines = {}, {}, {}, [], []
        self.locals, self.shared, self.stops = {}, {}, 0
        for statement in head.split(";"):
            if re.search(r"\.(global|const|shared)\b", statement):
                self.declare(statement.strip())
        for statement in self.statements(body):
            self.statement(statement)

    @staticmethod
    def statements(body):
        """Split at semicolons; scopes of inline assembly are opened up, since their names are declared once."""
        for statement in body.split(";"):
            statement = statement.strip()
            while statement[:1] in ("{", "}"):
                statement = statement[1:].strip()
            while match := re.match(r"([$\w]+):(?!:)\s*", statement):
                yield match.group(1) + ":"
                statement = statement[match.end() :].strip()
                while statement[:1] in ("{", "}"):
                    statement = statement[1:].strip()
            if statement:
                yield statement

    def declare(self, statement):
        place = r"\.(global|const|shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?"
        match = re.search(place + r"\s*(?:=\s*\{(.*)\})?", statement, re.S)
        if not match:
            raise NotImplementedError(statement)
        space, align, type, name, size, values = match.groups()
        if space == "local":
            self.locals[name] = f"_Alignas({align or 8}) char {name}[{size}];"
        elif space == "shared":
            self.shared[name] = 0 if ".extern" in statement else int(size or 1) * width(type) // 8
        else:
            self.globals.append(f"static _Alignas({align or 8}) {c_type(type)} {name}[{size or 1}] = {{{values or '0'}}};")
        self.symbols[name] = space

    # Operands.

    def value(self, text, type):
        text = text.strip()
        if re.fullmatch(r"0f[0-9A-Fa-f]{8}", text):
            return f"float_of(0x{text[2:]}u)" if type != "b32" else f"0x{text[2:]}u"
        if re.fullmatch(r"0d[0-9A-Fa-f]{16}", text):
            return f"double_of(0x{text[2:]}ull)"
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
            return f"({c_type(type)}){text.rstrip('U')}{'ull' if width(type) == 64 else ''}"
        special = re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.([xyz])", text)
        if special:
            return {"tid": "t->tid", "ntid": "block", "ctaid": "cube", "nctaid": "grid"}[special[1]] + f"[{'xyz'.index(special[2])}]"
        if text in KNOWN:
            return KNOWN[text]
        if text in self.params:
            return f"(uint64_t)arguments[{self.params[text]}]"
        if text in self.symbols:
            return self.address_of(text)
        if text.startswith("!"):
            return f"!{self.value(text[1:], type)}"
        return f"{self.register(text)}.{'p' if type == 'pred' else field(type)}"

    def register(self, text):
        name = text.strip().lstrip("%")
        if name == "_":
            return "t->sink"
        if not re.fullmatch(r"\w+", name) or self.kind(name) is None:
            raise NotImplementedError(f"operand {text}")
        self.registers[name] = True
        return f"t->R_{name}"

    def address_of(self, name):
        space = self.symbols[name]
        if space == "local":
            return f"(uint64_t)t->{name}"
        if space == "shared":
            before = 0
            for other, size in self.shared.items():
                if other == name:
                    break
                before += size
            return f"(shared_base + {'dynamic_offset' if self.shared[name] == 0 else before})"
        return f"(uint64_t){name}"

    def address(self, text):
        text = text.strip()[1:-1]
        match = re.fullmatch(r"\s*([%\w$]+)\s*(?:\+\s*(-?\d+))?\s*", text)
        base, offset = match[1], match[2] or "0"
        if base in self.params:
            return f"((char *)arguments[{self.params[base]}] + {offset})"
        if base in self.symbols:
            return f"((char *)(uint64_t){self.address_of(base)} + {offset})"
        name = base.lstrip("%")
        return f"((char *)(uint64_t)({self.value(base, f'u{width(self.kind(name))}')}) + {offset})"

    def kind(self, name):
        """The type that a register was declared with, by its name or as one of many."""
        return self.kinds.get(name) or self.kinds.get(re.sub(r"\d+$", "", name))

    @staticmethod
    def operands(text):
        return [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", text)]

    @staticmethod
    def elements(text):
        return [part.strip() for part in text.strip("{} ").split(",")]

    # Statements.

    def emit(self, line):
        self.lines.append(line)

    def statement(self, s):
        if s.endswith(":"):
            return self.emit(f"L_{s[:-1].replace('$', '_')}:;")
        if s.startswith(".reg"):
            match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", s, re.S)
            for name in match[2].split(","):
                name = name.strip().lstrip("%")
                self.kinds[name.split("<")[0]] = match[1]
            return None
        if s.startswith((".local", ".shared")):
            return self.declare(s)
        if s.startswith("."):
            if s.startswith((".pragma", ".maxntid")):
                return None
            raise NotImplementedError(s)
        condition = re.match(r"@(!?)(%?\w+)\s+", s)
        if condition:
            s = s[condition.end() :]
            self.emit(f"if ({condition[1]}{self.value(condition[2], 'pred')}) {{")
        opcode = re.match(r"\S+", s)[0]
        self.instruction(opcode, self.operands(s[len(opcode) :]))
        if condition:
            self.emit("}")
        return None

    def stop(self, kind):
        """The thread stops here; the scheduler lets it go on."""
        self.stops += 1
        self.emit(f"t->pc = {self.stops}; return {kind}; case {self.stops}:;")

    def set(self, d, type, expression):
        if "|" in d:
            d, other = d.split("|")
            self.emit(f"{self.register(other)}.p = !({expression});")
        target = self.register(d)
        if type == "pred":
            self.emit(f"{target}.p = {expression};")
        elif type in ("f32", "f64"):
            self.emit(f"{target}.{type} = {expression};")
        elif type == "f16":
            self.emit(f"{target}.h = {expression};")
        else:
            self.emit(f"{target}.{field(type)} = ({c_type(type)})({expression});")

    def instruction(self, opcode, o):
        parts = opcode.split(".")
        name, flags = parts[0], parts[1:]
        types = [part for part in flags if part in TYPES]
        type = types[-1] if types else None
        if name in UNARY:
            return self.arithmetic(type, lambda a: f"{UNARY[name]}({a})", o)
        if name in BINARY:
            return self.arithmetic(type, lambda a, b: f"{a} {BINARY[name]} {b}", o)
        method = getattr(self, "op_" + name, None)
        if method is None:
            raise NotImplementedError(opcode)
        return method(opcode, flags, type, types, o)

    def v(self, o, type):
        return [self.value(x, type) for x in o]

    def op_mov(self, opcode, flags, type, types, o):
        d, s = o
        if d.startswith("{"):
            parts = self.elements(d)
            each = width(type) // len(parts)
            self.emit(f"{{ uint64_t whole = {self.value(s, 'u64' if width(type) == 64 else 'u32')};")
            for i, part in enumerate(parts):
                self.emit(f"{self.register(part)}.u{each} = whole >> {i * each};")
            return self.emit("}")
        if s.startswith("{"):
            parts = self.elements(s)
            each = width(type) // len(parts)
            whole = " | ".join(f"(uint64_t){self.value(p, f'u{each}')} << {i * each}" for i, p in enumerate(parts))
            return self.set(d, type, whole)
        return self.set(d, type, self.value(s, type))

    def op_cvta(self, opcode, flags, type, types, o):
        self.set(o[0], type, self.value(o[1], type))

    def load(self, d, type, at):
        register = self.register(d)
        if type in ("f32", "f64"):
            self.emit(f"{register}.{type} = *(const {c_type(type)} *){at};")
        elif type == "pred":
            raise NotImplementedError("pred in memory")
        else:
            kind = "u16" if type == "f16" else type
            self.emit(f"{register}.{'s64' if type[0] == 's' else 'u64'} = *(const {c_type(kind)} *){at};")

    def op_ld(self, opcode, flags, type, types, o):
        at = self.address(o[1])
        if o[0].startswith("{"):
            self.emit(f"{{ const char *from = {at};")
            for i, d in enumerate(self.elements(o[0])):
                self.load(d, type, f"(from + {i * width(type) // 8})")
            return self.emit("}")
        return self.load(o[0], type, at)

    op_ldu = op_ld

    def op_st(self, opcode, flags, type, types, o):
        at = self.address(o[0])
        for i, s in enumerate(self.elements(o[1]) if o[1].startswith("{") else [o[1]]):
            kind = "u16" if type == "f16" else type
            self.emit(f"*({c_type(kind)} *)({at} + {i * width(type) // 8}) = {self.value(s, kind)};")

    def op_atom(self, opcode, flags, type, types, o):
        operation = next(flag for flag in flags if flag in ("add", "min", "max", "exch", "and", "or", "xor", "cas"))
        at, b = self.address(o[1]), self.value(o[2], type)
        c = c_type(type)
        expression = {
            "add": "old + b",
            "min": "old < b ? old : b",
            "max": "old > b ? old : b",
            "exch": "b",
            "and": "old & b",
            "or": "old | b",
            "xor": "old ^ b",
            "cas": f"old == b ? {self.value(o[3], type) if len(o) > 3 else 0} : old",
        }[operation]
        result = f"{self.register(o[0])}.{field(type)}"
        self.emit(f"{{ {c} *at = ({c} *){at}; {c} old = *at, b = {b}; *at = {expression}; {result} = old; }}")

    def op_red(self, opcode, flags, type, types, o):
        self.op_atom(opcode, flags, type, types, ["_", *o])

    def op_cvt(self, opcode, flags, type, types, o):
        to, source = types[0], types[1]
        saturate = "sat" in flags
        if to in ("f16x2", "bf16x2"):
            high, low = self.v(o[1:], "f32")
            pack = "half_bits" if to == "f16x2" else "bfloat_bits"
            return self.set(o[0], to, f"(uint32_t){pack}({high}) << 16 | {pack}({low})")
        x = self.value(o[1], source)
        if source == "bf16":
            x, source = f"float_of((uint32_t){x} << 16)", "f32"
        elif source == "f16":
            x, source = f"(float){x}", "f32"
        rounding = next((flag for flag in flags if flag in ("rni", "rzi", "rmi", "rpi")), None)
        if rounding:
            x = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}[rounding] + f"({x})"
        from_float, to_float = source in ("f32", "f64"), to in ("f16", "bf16", "f32", "f64")
        if to == "bf16":
            return self.set(o[0], "u16", f"bfloat_bits({x})")
        if from_float and not to_float:
            return self.emit(f"{self.register(o[0])}.{'s64' if to[0] == 's' else 'u64'} = to_{field(to)}({x});")
        if to_float:
            if saturate:
                x = f"saturated({x})"
            return self.set(o[0], to, f"({c_type(to)})({x})")
        if saturate:
            raise NotImplementedError(opcode)
        return self.emit(f"{self.register(o[0])}.{'s64' if to[0] == 's' else 'u64'} = ({c_type(to)})({x});")

    def arithmetic(self, type, operator, o):
        if type in ("f16x2", "bf16x2"):
            half = "half_of" if type == "f16x2" else "bfloat_of"
            pack = "half_bits" if type == "f16x2" else "bfloat_bits"
            xs = self.v(o[1:], "u32")
            parts = [operator(*[f"{half}({x} >> {shift})" for x in xs]) for shift in (0, 16)]
            return self.set(o[0], type, f"(uint32_t){pack}({parts[1]}) << 16 | {pack}({parts[0]})")
        if type == "bf16":
            xs = [f"bfloat_of({x})" for x in self.v(o[1:], "u16")]
            return self.set(o[0], "u16", f"bfloat_bits({operator(*xs)})")
        if type == "f16":
            xs = [f"(float){x}" for x in self.v(o[1:], "f16")]
            return self.set(o[0], "f16", f"(_Float16)({operator(*xs)})")
        return self.set(o[0], type, operator(*self.v(o[1:], type)))

    def product(self, flags, type, a, b):
        if "wide" in flags:
            wide = type[0] + str(2 * width(type))
            return wide, f"({c_type(wide)}){a} * ({c_type(wide)}){b}"
        if "hi" in flags:
            wide = "__int128" if width(type) == 64 else c_type(type[0] + str(2 * width(type)))
            if width(type) == 64 and type[0] == "u":
                wide = "unsigned __int128"
            return type, f"(({wide}){a} * ({wide}){b}) >> {width(type)}"
        unsigned = "u" + str(width(type))
        return type, f"({c_type(unsigned)}){a} * ({c_type(unsigned)}){b}"

    def op_mul(self, opcode, flags, type, types, o):
        if type[0] in "fb" and type not in ("b16", "b32", "b64"):
            return self.arithmetic(type, lambda a, b: f"{a} * {b}", o)
        wide, expression = self.product(flags, type, *self.v(o[1:], type))
        return self.set(o[0], wide, expression)

    def op_mad(self, opcode, flags, type, types, o):
        if type in ("f32", "f64"):
            return self.op_fma(opcode, flags, type, types, o)
        wide, expression = self.product(flags, type, *self.v(o[1:3], type))
        return self.set(o[0], wide, f"({expression}) + {self.value(o[3], wide)}")

    def op_fma(self, opcode, flags, type, types, o):
        call = "fma" if type == "f64" else "fmaf"
        if "rm" in flags:
            call = "fma_down"
        self.arithmetic(type, lambda a, b, c: f"{call}({a}, {b}, {c})", o)

    def op_div(self, opcode, flags, type, types, o):
        if type in ("f32", "f64"):
            return self.arithmetic(type, lambda a, b: f"{a} / {b}", o)
        a, b = self.v(o[1:], type)
        return self.set(o[0], type, f"{b} ? {a} / {b} : -1")

    def op_rem(self, opcode, flags, type, types, o):
        a, b = self.v(o[1:], type)
        self.set(o[0], type, f"{b} ? {a} % {b} : {a}")

    def extreme(self, type, o, sign, call):
        if type[0] in "us":
            return self.arithmetic(type, lambda a, b: f"{a} {sign} {b} ? {a} : {b}", o)
        return self.arithmetic(type, lambda a, b: f"{call}({a}, {b})", o)

    def op_min(self, opcode, flags, type, types, o):
        self.extreme(type, o, "<", "fmin")

    def op_max(self, opcode, flags, type, types, o):
        self.extreme(type, o, ">", "fmax")

    def op_abs(self, opcode, flags, type, types, o):
        self.arithmetic(type, lambda a: f"fabs({a})" if type[0] in "fb" else f"({a} < 0 ? -{a} : {a})", o)

    def op_neg(self, opcode, flags, type, types, o):
        self.arithmetic(type, lambda a: f"-{a}", o)

    def op_copysign(self, opcode, flags, type, types, o):
        self.arithmetic(type, lambda a, b: f"copysign({b}, {a})", o)

    def op_not(self, opcode, flags, type, types, o):
        self.set(o[0], type, f"{'!' if type == 'pred' else '~'}{self.value(o[1], type)}")

    def op_shl(self, opcode, flags, type, types, o):
        by = self.value(o[2], "u32")
        self.set(o[0], type, f"{by} >= {width(type)} ? 0 : ({c_type('u' + str(width(type)))}){self.value(o[1], type)} << {by}")

    def op_shr(self, opcode, flags, type, types, o):
        by, most = self.value(o[2], "u32"), width(type) - 1
        a = self.value(o[1], type)
        self.set(o[0], type, f"{by} > {most} ? {a + f' >> {most}' if type[0] == 's' else '0'} : {a} >> {by}")

    def op_shf(self, opcode, flags, type, types, o):
        low, high, by = self.v(o[1:], "u32")
        by = f"({by} & 31)" if "wrap" in flags else f"({by} > 32 ? 32 : {by})"
        whole = f"((uint64_t){high} << 32 | {low})"
        self.set(o[0], "u32", f"{whole} << {by} >> 32" if "l" in flags else f"{whole} >> {by}")

    def op_bfe(self, opcode, flags, type, types, o):
        self.set(o[0], type, f"extract_{type[0]}{width(type)}({self.value(o[1], type)}, {', '.join(self.v(o[2:], 'u32'))})")

    def op_bfi(self, opcode, flags, type, types, o):
        a, b = self.v(o[1:3], type)
        self.set(o[0], type, f"insert({a}, {b}, {', '.join(self.v(o[3:], 'u32'))})")

    def op_prmt(self, opcode, flags, type, types, o):
        if len(flags) > 1:
            raise NotImplementedError(opcode)
        self.set(o[0], "u32", f"permute({', '.join(self.v(o[1:], 'u32'))})")

    def op_lop3(self, opcode, flags, type, types, o):
        self.set(o[0], "u32", f"lop3({', '.join(self.v(o[1:5], 'u32'))})")

    def op_popc(self, opcode, flags, type, types, o):
        self.set(o[0], "u32", f"__builtin_popcountll({self.value(o[1], 'u' + str(width(type)))})")

    def op_clz(self, opcode, flags, type, types, o):
        x = self.value(o[1], "u" + str(width(type)))
        self.set(o[0], "u32", f"{x} ? __builtin_clzll({x}) - {64 - width(type)} : {width(type)}")

    def op_setp(self, opcode, flags, type, types, o):
        compare = flags[0]
        both = next((flag for flag in flags[1:] if flag in ("and", "or", "xor")), None)
        if type in ("bf16",):
            a, b = (f"bfloat_of({x})" for x in self.v(o[1:3], "u16"))
        else:
            a, b = self.v(o[1:3], type)
        operators = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
        operators |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
        unordered = f"({a} != {a} || {b} != {b})"
        if compare in operators:
            is_float = type in ("f16", "bf16", "f32", "f64")
            result = f"({a} {operators[compare]} {b})" + (f" && !{unordered}" if compare == "ne" and is_float else "")
        elif compare == "num":
            result = f"!{unordered}"
        elif compare == "nan":
            result = unordered
        else:
            result = f"({a} {operators[compare[:-1]]} {b} || {unordered})"
        if both:
            result = f"({result}) {BOTH[both]} {self.value(o[3], 'pred')}"
        self.set(o[0], "pred", result)

    def op_selp(self, opcode, flags, type, types, o):
        a, b = self.v(o[1:3], type)
        self.set(o[0], type, f"{self.value(o[3], 'pred')} ? {a} : {b}")

    # Control.

    def op_bra(self, opcode, flags, type, types, o):
        self.emit(f"goto L_{o[0].replace('$', '_')};")

    def op_ret(self, opcode, flags, type, types, o):
        self.emit("return ENDED;")

    op_exit = op_ret

    def op_trap(self, opcode, flags, type, types, o):
        self.emit("abort();")

    def op_bar(self, opcode, flags, type, types, o):
        if "warp" in flags:
            self.emit("t->kind = NOTHING;")
            return self.stop("WARP")
        return self.stop("BARRIER")

    op_barrier = op_bar

    def op_fence(self, opcode, flags, type, types, o):
        pass

    op_membar = op_fence

    def op_shfl(self, opcode, flags, type, types, o):
        d, *pred = o[0].split("|")
        mode = flags[1]
        x, b, c = self.v(o[1:4], "u32")
        self.emit(f"t->kind = SHUFFLE_{mode.upper()}; t->in = {x}; t->b = {b}; t->c = {c};")
        self.stop("WARP")
        self.set(d, "u32", "t->out")
        if pred:
            self.set(pred[0], "pred", "t->valid")

    def op_vote(self, opcode, flags, type, types, o):
        mode = flags[1]
        self.emit(f"t->kind = VOTE; t->in = {self.value(o[1], 'pred')};")
        self.stop("WARP")
        results = {"ballot": ("u32", "t->out"), "any": ("pred", "t->out != 0"), "all": ("pred", "t->out == t->running")}
        self.set(o[0], *results[mode])

    def op_redux(self, opcode, flags, type, types, o):
        kind = flags[1].upper() + ("_S" if type == "s32" else "_U" if flags[1] in ("min", "max") else "")
        self.emit(f"t->kind = REDUCE_{kind}; t->in = {self.value(o[1], 'u32')};")
        self.stop("WARP")
        self.set(o[0], "u32", "t->out")

    # Matrices. Which thread has which element is for this file to choose: thread l has the elements from l * count on, row-major.

    def op_wmma(self, opcode, flags, type, types, o):
        shape = next(re.fullmatch(r"m(\d+)n(\d+)k(\d+)", flag) for flag in flags if re.fullmatch(r"m\d+n\d+k\d+", flag))
        m, n, k = map(int, shape.groups())
        action = flags[0]
        if action == "mma":
            element = "bf16" if "bf16" in flags else "f16"
            if types[0] != "f32" or types[-1] != "f32":
                raise NotImplementedError(opcode)
            d, a, b, c = map(self.elements, o)
            for place, fragment in (("a", a), ("b", b), ("c", c)):
                for i, register in enumerate(fragment):
                    self.emit(f"t->{place}_fragment[{i}] = {self.value(register, 'u32')};")
            self.emit(f"t->kind = MULTIPLY; t->m = {m}; t->n = {n}; t->k = {k}; t->bfloat = {int(element == 'bf16')};")
            self.stop("WARP")
            for i, register in enumerate(d):
                self.set(register, "u32", f"t->c_fragment[{i}]")
            return
        which = flags[1]
        rows, columns = {"a": (m, k), "b": (k, n), "c": (m, n), "d": (m, n)}[which]
        layout = next(flag for flag in flags if flag in ("row", "col"))
        memory, fragment = (o[0], o[1]) if action == "store" else (o[1], o[0])
        stride = self.value(o[2], "u32") if len(o) > 2 else str(columns if layout == "row" else rows)
        registers = self.elements(fragment)
        count = rows * columns // 32
        bits = 32 if type == "f32" else 16
        self.emit(f"{{ char *memory = {self.address(memory)}; uint32_t stride = {stride};")
        for i, register in enumerate(registers):
            if action == "load":
                self.emit(f"{self.register(register)}.u32 = 0;")
        for i in range(count):
            row, column = f"(e{i} / {columns})", f"(e{i} % {columns})"
            place = f"{row} * stride + {column}" if layout == "row" else f"{column} * stride + {row}"
            self.emit(f"uint32_t e{i} = t->linear % 32 * {count} + {i};")
            at = f"((uint{bits}_t *)memory)[{place}]"
            if bits == 32:
                register = f"{self.register(registers[i])}.u32"
                self.emit(f"{register} = {at};" if action == "load" else f"{at} = {register};")
            elif action == "load":
                self.emit(f"{self.register(registers[i // 2])}.u32 |= (uint32_t){at} << {16 * (i % 2)};")
            else:
                raise NotImplementedError(opcode)
        self.emit("}")

    def source(self):
        registers = "\n".join(f"    Register R_{name};" for name in self.registers)
        local_memory = "\n".join("    " + line for line in self.locals.values())
        body = "\n".join(self.lines)
        static = sum(self.shared.values())
        return f"""#include "threads.h"
struct Thread {{
    THREAD_STATE
{registers}
{local_memory}
}};
enum {{ static_shared = {static}, dynamic_offset = {(static + 127) // 128 * 128} }};
{chr(10).join(self.globals)}
static int advance(struct Thread *t, void **arguments) {{
switch (t->pc) {{ case 0:;
{body}
}}
return ENDED;
}}
#include "schedule.h"
"""


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        sys.stdout.write(Kernel(file.read()).source())
