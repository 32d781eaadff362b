// The scheduler of host.hpp, and every kernel compiled for the CPU: one library per precision.
#include "common.cuh"
// clang-format off: the order is that of use
#include "rng.cu"
#include "gather.cu"
#include "dense.cu"
#include "latent.cu"
#include "likelihood.cu"
#include "optimizer.cu"
#include "phases.cu"
#include "sample.cu"
#include "passes.cu"
#include "faults.cu"
#include "functions.cu"
// clang-format on

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <algorithm>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

// A kernel's; or, without an entry, a product's, whose HostProduct the arguments are.
struct HostLaunch {
  const host::Entry* entry;
  const void* arguments;
  long arguments_size;
  int blocks, threads, shared_bytes;
};

namespace host {
namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr int red_zone = 64;         // floats on either side of shared memory
constexpr u32 poison = 0xffffffffu;  // a NaN

constexpr size_t most_ahead = 20000;  // threads of a launch that begins before the one before has ended

enum class State { ready, at_barrier, in_warp, behind, finished };  // behind: the launch before

struct PendingCopy {
  void* to;
  unsigned char value[16];
  int bytes;
  long group;
};

struct Fiber {
  jmp_buf here;
  ucontext_t start;
  bool started = false, waited = false;
  State state = State::ready;
  int line = 0;
  std::vector<PendingCopy> copies;  // asked for; those before `copied` are carried out
  size_t copied = 0;
  long group = 0;  // the one that is not committed yet
};

// The operation that lanes of a warp have arrived at.
struct Warp {
  void* operands[32];
  int arrived = 0, line = 0;
};

struct Block {
  unsigned index;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  std::vector<float> shared;
  bool held;  // until the launch before has ended
};

struct Machine {
  jmp_buf scheduler;
  std::vector<Fiber*> idle, all;
  Block* block = nullptr;  // the one that runs
  int current = 0;
  const HostLaunch* launch = nullptr;
  std::mt19937_64 random;
  std::string error;
} machine;
std::mutex in_use;

Fiber& self() { return *machine.block->fibers[machine.current]; }

// Back to the scheduler, until it resumes this fiber.
void wait_as(State state, int line) {
  self().state = state;
  self().line = line;
  if (_setjmp(self().here) == 0) _longjmp(machine.scheduler, 1);
}

void fiber_main() {
  for (;;) {  // once per block
    const Entry& entry = *machine.launch->entry;
    entry.run(machine.launch->arguments);
    if (!self().copies.empty()) machine.error = "a thread ends with asynchronous copies that it has not waited for";
    if (entry.ahead && !self().waited) machine.error = "a thread ends without having waited for the launch before";
    wait_as(State::finished, 0);
  }
}

void begin_anew(Fiber* fiber, void* stack) {
  fiber->started = false;
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = stack;
  fiber->start.uc_stack.ss_size = stack_bytes;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, fiber_main, 0);
}

Fiber* take_fiber() {
  if (machine.idle.empty()) {
    void* stack =
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    machine.all.push_back(new Fiber);
    begin_anew(machine.all.back(), stack);
    machine.idle.push_back(machine.all.back());
  }
  Fiber* fiber = machine.idle.back();
  machine.idle.pop_back();
  fiber->state = State::ready;
  fiber->waited = false;
  fiber->copies.clear();
  fiber->copied = 0;
  return fiber;
}

void resume(int thread) {
  machine.current = thread;
  threadIdx.x = static_cast<unsigned>(thread);
  Fiber& fiber = self();
  if (_setjmp(machine.scheduler)) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

std::string where(int thread) {
  const Fiber& fiber = *machine.block->fibers[thread];
  const char* what = fiber.state == State::finished     ? "has finished"
                     : fiber.state == State::behind     ? "waits for the launch before"
                     : fiber.state == State::at_barrier ? "waits at a barrier of the block"
                                                        : "waits in an operation of its warp";
  return "thread " + std::to_string(thread) + " " + what + " (line " + std::to_string(fiber.line) + ")";
}

// Every thread waits or has finished: open the barrier that all are at, or say who is not.
bool open_barrier() {
  const std::vector<Fiber*>& fibers = machine.block->fibers;
  for (size_t i = 1; i < fibers.size(); ++i) {
    if (fibers[i]->state != fibers[0]->state || fibers[i]->line != fibers[0]->line) {
      machine.error = "divergent threads: " + where(0) + ", " + where(static_cast<int>(i));
      return false;
    }
  }
  if (fibers[0]->state == State::in_warp) {
    machine.error = "a warp has fewer than 32 threads: " + where(0);
    return false;
  }
  if (fibers[0]->state == State::finished || fibers[0]->state == State::behind) return false;
  for (Fiber* fiber : fibers) fiber->state = State::ready;
  return true;
}

void check_red_zones(const std::vector<float>& shared) {
  for (int i = 0; i < red_zone; ++i)
    if (bits(shared[i]) != poison || bits(shared[shared.size() - 1 - i]) != poison)
      machine.error = "shared memory is written out of bounds";
}

Block new_block(const HostLaunch& launch, unsigned index, bool held) {
  Block block = {index, {}, {}, {}, held};
  for (int i = 0; i < launch.threads; ++i) block.fibers.push_back(take_fiber());
  block.warps.resize((launch.threads + 31) / 32);
  block.shared.assign(launch.shared_bytes / 4 + 2 * red_zone, from_bits(poison));
  return block;
}

// To its end; or, while it is held, to where it waits for the launch before.
void run_block(const HostLaunch& launch, Block& block) {
  machine.launch = &launch;
  machine.block = &block;
  blockIdx.x = block.index;
  blockDim.x = static_cast<unsigned>(launch.threads);
  gridDim.x = static_cast<unsigned>(launch.blocks);
  std::vector<int> order(block.fibers.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  do {
    std::shuffle(order.begin(), order.end(), machine.random);
    for (bool any = true; any && machine.error.empty();) {
      any = false;
      for (int thread : order)
        if (block.fibers[thread]->state == State::ready) {
          resume(thread);
          any = true;
        }
    }
  } while (machine.error.empty() && open_barrier());
  if (!machine.error.empty()) return;
  check_red_zones(block.shared);
  if (block.fibers[0]->state == State::finished)
    machine.idle.insert(machine.idle.end(), block.fibers.begin(), block.fibers.end());
}

void release(Block& block) {
  block.held = false;
  for (Fiber* fiber : block.fibers)
    if (fiber->state == State::behind) fiber->state = State::ready;
}

// The blocks of a launch in a random order, as far as each comes.
std::vector<Block> begin_ahead(const HostLaunch& launch) {
  std::vector<Block> blocks;
  for (int i = 0; i < launch.blocks; ++i) blocks.push_back(new_block(launch, i, true));
  std::shuffle(blocks.begin(), blocks.end(), machine.random);
  for (Block& block : blocks)
    if (machine.error.empty()) run_block(launch, block);
  return blocks;
}

void run_grid(const HostLaunch& launch, std::vector<Block>& begun) {
  for (Block& block : begun) {
    release(block);
    if (machine.error.empty()) run_block(launch, block);
  }
  if (!begun.empty()) return;
  std::vector<unsigned> order(launch.blocks);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), machine.random);
  for (unsigned index : order) {
    Block block = new_block(launch, index, false);
    run_block(launch, block);
    if (!machine.error.empty()) return;
  }
}

}  // namespace

void barrier(int line) { wait_as(State::at_barrier, line); }

// A lane that comes to another operation than its warp waits at stays waiting, and open_barrier tells of it.
void warp_together(Together together, void* mine, int line) {
  Warp& warp = machine.block->warps[machine.current / 32];
  if (warp.arrived == 0) warp.line = line;
  if (warp.line == line) {
    warp.operands[machine.current % 32] = mine;
    ++warp.arrived;
  }
  if (warp.arrived < 32 || warp.line != line) return wait_as(State::in_warp, line);
  together(warp.operands);
  warp.arrived = 0;
  for (int i = machine.current / 32 * 32; i < machine.current / 32 * 32 + 32; ++i)
    machine.block->fibers[i]->state = State::ready;
}

void wait_for_launch_before() {
  self().waited = true;
  if (machine.block->held) wait_as(State::behind, 0);
}

float* shared_memory() { return machine.block->shared.data() + red_zone; }

// The copy happens when it is waited for: what is read before that is poison or old.
void copy_async(void* shared, const void* from, bool valid, int bytes) {
  PendingCopy copy = {shared, {}, bytes, self().group};
  if (valid) std::memcpy(copy.value, from, bytes);
  self().copies.push_back(copy);
}
void check_alignment(const float* p, int neighbours) {
  if (reinterpret_cast<u64>(p) % (sizeof(float) * neighbours)) machine.error = "neighbours that are not aligned";
}
void commit_copies() { ++self().group; }
void wait_copies(int pending) {
  Fiber& me = self();
  for (; me.copied < me.copies.size() && me.copies[me.copied].group < me.group - pending; ++me.copied)
    std::memcpy(me.copies[me.copied].to, me.copies[me.copied].value, me.copies[me.copied].bytes);
  if (me.copied == me.copies.size()) me.copies.clear(), me.copied = 0;
}

}  // namespace host

// launch.Product: c = op(a) op(b) row by row, sums in float32 in the order of k.
struct HostProduct {
  const void *a, *b;
  float* c;
  i64 lda, ldb, ldc;
  int m, n, k, transposed_a, transposed_b;
};

static float operand_at(const void* p, i64 i) {
  if (FASTVAE_PRECISION == BF16) return from_bits(static_cast<u32>(static_cast<const unsigned short*>(p)[i]) << 16);
  const float v = static_cast<const float*>(p)[i];
  return FASTVAE_PRECISION == TF32 ? from_bits(bits(v) & 0xffffe000u) : v;  // the tensor cores look at no other bits
}

static void multiply(const HostProduct& p) {
  std::vector<float> sum(p.n), b(static_cast<size_t>(p.k) * p.n);
  for (int l = 0; l < p.k; ++l)
    for (int j = 0; j < p.n; ++j) b[l * p.n + j] = operand_at(p.b, p.transposed_b ? j * p.ldb + l : l * p.ldb + j);
  for (int i = 0; i < p.m; ++i) {
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int l = 0; l < p.k; ++l) {
      const float a = operand_at(p.a, p.transposed_a ? l * p.lda + i : i * p.lda + l);
      for (int j = 0; j < p.n; ++j) sum[j] += a * b[l * p.n + j];
    }
    std::copy(sum.begin(), sum.end(), p.c + i * p.ldc);
  }
}

static void check_arguments(const HostLaunch& launch) {
  if (launch.arguments_size == launch.entry->arguments_size && launch.threads == launch.entry->threads) return;
  host::machine.error = "arguments of " + std::to_string(launch.arguments_size) + " bytes and " +
                        std::to_string(launch.threads) + " threads, not " +
                        std::to_string(launch.entry->arguments_size) + " and " + std::to_string(launch.entry->threads);
}

// Run launches one after another. With `overlap`, a kernel that can begins before the launch before does anything, or,
// as chance has it, when that has ended. Returns how many were run; fewer than given with `error` filled when one
// failed.
extern "C" __attribute__((visibility("default"))) int run_launches(const HostLaunch* launches, int count, int overlap,
                                                                   u64 seed, char* error, int error_size) {
  std::lock_guard<std::mutex> guard(host::in_use);
  host::Machine& m = host::machine;
#if defined(__SSE__)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // denormals are zero, as CuPy compiles
#endif
  m.random.seed(seed);
  m.error.clear();
  std::vector<host::Block> begun, next_begun;
  int done = 0;
  for (; done < count; ++done) {
    const HostLaunch& launch = launches[done];
    if (!launch.entry) {
      multiply(*static_cast<const HostProduct*>(launch.arguments));
      continue;
    }
    check_arguments(launch);
    if (!m.error.empty()) break;
    const HostLaunch* next = done + 1 < count ? &launches[done + 1] : nullptr;
    next_begun.clear();
    if (overlap && next && next->entry && next->entry->ahead && m.random() % 4 &&
        static_cast<size_t>(next->blocks) * next->threads <= host::most_ahead)
      next_begun = host::begin_ahead(*next);
    if (m.error.empty()) host::run_grid(launch, begun);
    if (!m.error.empty()) break;
    begun.swap(next_begun);
  }
#if defined(__SSE__)
  _mm_setcsr(mode);
#endif
  if (!m.error.empty()) {
    for (host::Fiber* fiber : m.all) host::begin_anew(fiber, fiber->start.uc_stack.ss_sp);  // some were in the middle
    m.idle = m.all;
    std::string text = "block " + std::to_string(blockIdx.x) + ": " + m.error;
    std::snprintf(error, error_size, "%s", text.c_str());
  }
  return done;
}
