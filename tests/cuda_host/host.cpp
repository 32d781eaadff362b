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
#include "passes.cu"
#include "faults.cu"
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

namespace host {
namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr int red_zone = 64;         // floats on either side of shared memory
constexpr u32 poison = 0xffffffffu;  // a NaN

enum class State { ready, at_barrier, in_warp, finished };

struct PendingCopy {
  float* to;
  float value[4];
  long group;
};

struct Fiber {
  jmp_buf here;
  ucontext_t start;
  bool started = false;
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

struct Machine {
  jmp_buf scheduler;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  int threads = 0, current = 0;
  const Entry* entry = nullptr;
  const void* arguments = nullptr;
  std::vector<float> shared;
  std::mt19937_64 random;
  std::string error;
} machine;
std::mutex in_use;

Fiber& self() { return *machine.fibers[machine.current]; }

// Back to the scheduler, until it resumes this fiber.
void wait_as(State state, int line) {
  self().state = state;
  self().line = line;
  if (_setjmp(self().here) == 0) _longjmp(machine.scheduler, 1);
}

void fiber_main() {
  for (;;) {  // once per block
    machine.entry->run(machine.arguments);
    if (!self().copies.empty()) machine.error = "a thread ends with asynchronous copies that it has not waited for";
    wait_as(State::finished, 0);
  }
}

void add_fiber() {
  auto* fiber = new Fiber;
  void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  getcontext(&fiber->start);
  fiber->start.uc_stack.ss_sp = stack;
  fiber->start.uc_stack.ss_size = stack_bytes;
  fiber->start.uc_link = nullptr;
  makecontext(&fiber->start, fiber_main, 0);
  machine.fibers.push_back(fiber);
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
  const Fiber& fiber = *machine.fibers[thread];
  const char* what = fiber.state == State::finished     ? "has finished"
                     : fiber.state == State::at_barrier ? "waits at a barrier of the block"
                                                        : "waits in an operation of its warp";
  return "thread " + std::to_string(thread) + " " + what + " (line " + std::to_string(fiber.line) + ")";
}

// Every thread waits or has finished: open the barrier that all are at, or say who is not.
bool open_barrier() {
  for (int i = 1; i < machine.threads; ++i) {
    const Fiber &first = *machine.fibers[0], &fiber = *machine.fibers[i];
    if (fiber.state != first.state || fiber.line != first.line) {
      machine.error = "divergent threads: " + where(0) + ", " + where(i);
      return false;
    }
  }
  if (machine.fibers[0]->state == State::in_warp) {
    machine.error = "a warp has fewer than 32 threads: " + where(0);
    return false;
  }
  if (machine.fibers[0]->state == State::finished) return false;
  for (int i = 0; i < machine.threads; ++i) machine.fibers[i]->state = State::ready;
  return true;
}

void check_red_zones() {
  for (int i = 0; i < red_zone; ++i)
    if (bits(machine.shared[i]) != poison || bits(machine.shared[machine.shared.size() - 1 - i]) != poison)
      machine.error = "shared memory is written out of bounds";
}

void run_block(int shared_bytes) {
  machine.shared.resize(shared_bytes / 4 + 2 * red_zone);
  std::fill(machine.shared.begin(), machine.shared.end(), from_bits(poison));
  std::vector<int> order(machine.threads);
  for (int i = 0; i < machine.threads; ++i) {
    order[i] = i;
    machine.fibers[i]->state = State::ready;
    machine.fibers[i]->copies.clear();
    machine.fibers[i]->copied = 0;
  }
  machine.warps.assign((machine.threads + 31) / 32, {});
  do {
    std::shuffle(order.begin(), order.end(), machine.random);
    for (bool any = true; any && machine.error.empty();) {
      any = false;
      for (int thread : order)
        if (machine.fibers[thread]->state == State::ready) {
          resume(thread);
          any = true;
        }
    }
  } while (machine.error.empty() && open_barrier());
  check_red_zones();
}

}  // namespace

void barrier(int line) { wait_as(State::at_barrier, line); }

// A lane that comes to another operation than its warp waits at stays waiting, and open_barrier tells of it.
void warp_together(Together together, void* mine, int line) {
  Warp& warp = machine.warps[machine.current / 32];
  if (warp.arrived == 0) warp.line = line;
  if (warp.line == line) {
    warp.operands[machine.current % 32] = mine;
    ++warp.arrived;
  }
  if (warp.arrived < 32 || warp.line != line) return wait_as(State::in_warp, line);
  together(warp.operands);
  warp.arrived = 0;
  for (int i = machine.current / 32 * 32; i < machine.current / 32 * 32 + 32; ++i)
    machine.fibers[i]->state = State::ready;
}

float* shared_memory() { return machine.shared.data() + red_zone; }

// The copy happens when it is waited for: what is read before that is poison or old.
void copy_async(float* shared, const float* from, bool valid) {
  PendingCopy copy = {shared, {}, self().group};
  if (valid) std::memcpy(copy.value, from, sizeof copy.value);
  self().copies.push_back(copy);
}
void commit_copies() { ++self().group; }
void wait_copies(int pending) {
  Fiber& me = self();
  for (; me.copied < me.copies.size() && me.copies[me.copied].group < me.group - pending; ++me.copied)
    std::memcpy(me.copies[me.copied].to, me.copies[me.copied].value, sizeof me.copies[0].value);
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

// A kernel's; or, without an entry, a product's, whose HostProduct the arguments are.
struct HostLaunch {
  const host::Entry* entry;
  const void* arguments;
  long arguments_size;
  int blocks, threads, shared_bytes;
};

// Run launches one after another. Returns how many were run; fewer than given with `error` filled when one failed.
extern "C" __attribute__((visibility("default"))) int run_launches(const HostLaunch* launches, int count, u64 seed,
                                                                   char* error, int error_size) {
  std::lock_guard<std::mutex> guard(host::in_use);
  host::Machine& m = host::machine;
#if defined(__SSE__)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);  // denormals are zero, as CuPy compiles
#endif
  m.random.seed(seed);
  m.error.clear();
  int done = 0;
  for (; done < count && m.error.empty(); ++done) {
    const HostLaunch& launch = launches[done];
    if (!launch.entry) {
      multiply(*static_cast<const HostProduct*>(launch.arguments));
      continue;
    }
    if (launch.arguments_size != launch.entry->arguments_size || launch.threads != launch.entry->threads) {
      m.error = "arguments of " + std::to_string(launch.arguments_size) + " bytes and " +
                std::to_string(launch.threads) + " threads, not " + std::to_string(launch.entry->arguments_size) +
                " and " + std::to_string(launch.entry->threads);
      break;
    }
    while (static_cast<int>(m.fibers.size()) < launch.threads) host::add_fiber();
    m.entry = launch.entry;
    m.arguments = launch.arguments;
    m.threads = launch.threads;
    blockDim.x = static_cast<unsigned>(launch.threads);
    gridDim.x = static_cast<unsigned>(launch.blocks);
    std::vector<unsigned> blocks(gridDim.x);
    for (unsigned i = 0; i < gridDim.x; ++i) blocks[i] = i;
    std::shuffle(blocks.begin(), blocks.end(), m.random);
    for (unsigned block : blocks) {
      blockIdx.x = block;
      host::run_block(launch.shared_bytes);
      if (!m.error.empty()) break;
    }
    if (!m.error.empty()) break;
  }
#if defined(__SSE__)
  _mm_setcsr(mode);
#endif
  if (!m.error.empty()) {
    for (host::Fiber* fiber : m.fibers) fiber->started = false;  // abandoned in the middle
    for (host::Fiber* fiber : m.fibers) {
      void* stack = fiber->start.uc_stack.ss_sp;
      getcontext(&fiber->start);
      fiber->start.uc_stack.ss_sp = stack;
      fiber->start.uc_stack.ss_size = host::stack_bytes;
      makecontext(&fiber->start, host::fiber_main, 0);
    }
    std::string text = "block " + std::to_string(blockIdx.x) + ": " + m.error;
    std::snprintf(error, error_size, "%s", text.c_str());
  }
  return done;
}
