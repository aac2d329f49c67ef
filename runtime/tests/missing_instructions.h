// Instructions of AVX-VNNI and AMX for CPUs that lack them: a handler of SIGILL computes what the instruction would
// have and goes on behind it. So the kernels of the library run as they were compiled, instruction by instruction,
// where no such CPU is at hand. About 10 microseconds per instruction.
//
// Written from the operation sections of Intel's manual, for the forms that the kernels use; any other illegal
// instruction ends the program as it would without this.
#pragma once

#if defined(__x86_64__) && defined(__linux__)

#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>

namespace missing_instructions {

struct Tile {
  uint8_t bytes[16][64];
};

struct TileState {
  bool configured;
  size_t rows[8], row_bytes[8];
  Tile tile[8];
};

inline TileState tiles;
inline unsigned long long executed;

// The fields of a three-byte VEX prefix, its opcode and its ModRM byte.
struct Decoded {
  unsigned map, prefix, opcode, vvvv, reg, rm;
  bool wide, is_256, memory;
  uint8_t* address;  // with memory
  size_t stride;     // the index register, which AMX takes for the distance of rows
  size_t length;
};

inline uint64_t general(const mcontext_t& m, unsigned number) {
  static const int kIndex[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  return uint64_t(m.gregs[kIndex[number]]);
}

inline bool decode(const mcontext_t& m, Decoded* d) {
  const uint8_t* p = reinterpret_cast<const uint8_t*>(m.gregs[REG_RIP]);
  if (p[0] != 0xc4) return false;
  const unsigned r = p[1] & 0x80 ? 0 : 8, x = p[1] & 0x40 ? 0 : 8, b = p[1] & 0x20 ? 0 : 8;
  d->map = p[1] & 31;
  d->wide = p[2] & 0x80;
  d->vvvv = ~(p[2] >> 3) & 15;
  d->is_256 = p[2] & 4;
  d->prefix = p[2] & 3;  // none, 66, f3, f2
  d->opcode = p[3];
  const unsigned mod = p[4] >> 6, rm = p[4] & 7;
  d->reg = (p[4] >> 3 & 7) + r;
  d->rm = rm + b;
  d->memory = mod != 3;
  d->length = 5;
  if (!d->memory) return true;
  uint64_t address = 0;
  d->stride = 0;
  bool relative = mod == 0 && rm == 5, no_base = relative;
  unsigned base = d->rm;
  if (rm == 4) {
    const uint8_t sib = p[d->length++];
    const unsigned index = (sib >> 3 & 7) + x;
    base = (sib & 7) + b;
    no_base = mod == 0 && (sib & 7) == 5;
    if (index != 4) d->stride = general(m, index) << (sib >> 6);
  }
  int32_t displacement = 0;
  if (mod == 1) {
    displacement = int8_t(p[d->length++]);
  } else if (mod == 2 || no_base) {
    std::memcpy(&displacement, p + d->length, 4);
    d->length += 4;
  }
  if (!no_base) address = general(m, base);
  if (relative) address = uint64_t(p) + d->length;
  d->address = reinterpret_cast<uint8_t*>(address + uint64_t(int64_t(displacement)));
  return true;
}

// Registers of the interrupted code lie in the signal frame in the standard layout of XSAVE.
struct Ymm {
  uint8_t *low, *high;
  Ymm(const mcontext_t& m, unsigned number) {
    uint8_t* frame = reinterpret_cast<uint8_t*>(m.fpregs);
    low = frame + 160 + 16 * number;
    high = frame + 576 + 16 * number;
    frame[512] |= 6;  // these components are to be restored
  }
  void read(uint8_t* out) const {
    std::memcpy(out, low, 16);
    std::memcpy(out + 16, high, 16);
  }
  void write(const uint8_t* in) const {
    std::memcpy(low, in, 16);
    std::memcpy(high, in + 16, 16);
  }
};

// Four products of an unsigned and a signed byte, or of two signed ones, added to each 32-bit sum.
template <class A>
void dot_fours(const uint8_t* a, const uint8_t* b, size_t n, int32_t* sum) {
  for (size_t i = 0; i < n; ++i) {
    int32_t total = 0;
    for (size_t k = 0; k < 4; ++k) total += int32_t(A(a[4 * i + k])) * int8_t(b[4 * i + k]);
    sum[i] = int32_t(uint32_t(sum[i]) + uint32_t(total));
  }
}

// Two products of 16-bit numbers, added to each 32-bit sum.
inline void dot_pairs(const uint8_t* a, const uint8_t* b, size_t n, int32_t* sum) {
  for (size_t i = 0; i < n; ++i) {
    int16_t x[2], y[2];
    std::memcpy(x, a + 4 * i, sizeof x);
    std::memcpy(y, b + 4 * i, sizeof y);
    sum[i] = int32_t(uint32_t(sum[i]) + uint32_t(x[0] * y[0]) + uint32_t(x[1] * y[1]));
  }
}

// vpdpbusd or vpdpwssd, which clang makes of vpmaddwd and an addition.
inline void dot_vectors(const mcontext_t& m, const Decoded& d) {
  uint8_t a[32], b[32];
  int32_t sum[8];
  Ymm(m, d.vvvv).read(a);
  if (d.memory) {
    std::memcpy(b, d.address + d.stride, 32);
  } else {
    Ymm(m, d.rm).read(b);
  }
  Ymm(m, d.reg).read(reinterpret_cast<uint8_t*>(sum));
  if (d.opcode == 0x50) {
    dot_fours<uint8_t>(a, b, 8, sum);
  } else {
    dot_pairs(a, b, 8, sum);
  }
  Ymm(m, d.reg).write(reinterpret_cast<const uint8_t*>(sum));
}

inline bool configure(const uint8_t* shapes) {
  if (shapes[0] != 1 || shapes[1] != 0) return false;
  tiles = {};
  tiles.configured = true;
  for (size_t i = 0; i < 8; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, shapes + 16 + 2 * i, 2);
    tiles.rows[i] = shapes[48 + i];
    tiles.row_bytes[i] = row_bytes;
    if (tiles.rows[i] > 16 || row_bytes > 64 || (tiles.rows[i] == 0) != (row_bytes == 0)) return false;
  }
  return true;
}

inline bool tdpbssd(unsigned c, unsigned a, unsigned b) {
  const size_t m = tiles.rows[c], n = tiles.row_bytes[c] / 4, k = tiles.row_bytes[a] / 4;
  if (c == a || c == b || a == b || tiles.rows[a] != m || tiles.rows[b] != k || tiles.row_bytes[b] != 4 * n) {
    return false;
  }
  for (size_t row = 0; row < m; ++row) {
    for (size_t i = 0; i < k; ++i) {
      for (size_t column = 0; column < n; ++column) {
        int32_t sum;
        std::memcpy(&sum, &tiles.tile[c].bytes[row][4 * column], 4);
        dot_fours<int8_t>(&tiles.tile[a].bytes[row][4 * i], &tiles.tile[b].bytes[i][4 * column], 1, &sum);
        std::memcpy(&tiles.tile[c].bytes[row][4 * column], &sum, 4);
      }
    }
  }
  return true;
}

inline bool usable(unsigned tile) { return tiles.configured && tile < 8 && tiles.rows[tile] != 0; }

// False: not one of ours, or an error that the CPU would report.
inline bool execute(const mcontext_t& m, const Decoded& d) {
  enum { kNone, k66, kF3, kF2 };
  if (d.map != 2 || d.wide) return false;
  if ((d.opcode == 0x50 || d.opcode == 0x52) && d.prefix == k66 && d.is_256) {
    dot_vectors(m, d);
    return true;
  }
  if (d.is_256) return false;
  if (d.opcode == 0x49 && d.prefix == kNone && d.reg == 0) {
    if (d.memory) return configure(d.address + d.stride);  // ldtilecfg
    tiles = {};                                            // tilerelease
    return true;
  }
  if (!usable(d.reg)) return false;
  Tile& tile = tiles.tile[d.reg];
  if (d.opcode == 0x49 && d.prefix == kF2 && !d.memory) {  // tilezero
    tile = {};
    return true;
  }
  if (d.opcode == 0x4b && d.memory && (d.prefix == kF2 || d.prefix == kF3)) {
    if (d.prefix == kF2) tile = {};  // tileloadd; else tilestored
    for (size_t row = 0; row < tiles.rows[d.reg]; ++row) {
      uint8_t* memory = d.address + row * d.stride;
      if (d.prefix == kF2) {
        std::memcpy(tile.bytes[row], memory, tiles.row_bytes[d.reg]);
      } else {
        std::memcpy(memory, tile.bytes[row], tiles.row_bytes[d.reg]);
      }
    }
    return true;
  }
  if (d.opcode == 0x5e && d.prefix == kF2 && !d.memory && usable(d.rm) && usable(d.vvvv)) {
    return tdpbssd(d.reg, d.rm, d.vvvv);
  }
  return false;
}

inline void on_illegal_instruction(int, siginfo_t*, void* context) {
  mcontext_t& m = static_cast<ucontext_t*>(context)->uc_mcontext;
  Decoded d = {};
  if (decode(m, &d) && execute(m, d)) {
    m.gregs[REG_RIP] += int64_t(d.length);
    ++executed;
  } else {
    signal(SIGILL, SIG_DFL);  // the instruction runs again and ends the program
  }
}

// While this lives, missing instructions are computed.
class Emulation {
 public:
  Emulation() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, &before_);
    executed = 0;
  }
  ~Emulation() { sigaction(SIGILL, &before_, nullptr); }
  Emulation(const Emulation&) = delete;
  Emulation& operator=(const Emulation&) = delete;

 private:
  struct sigaction before_;
};

}  // namespace missing_instructions

#endif
