#include "thread_pool.hpp"

#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <system_error>

#include "errors.hpp"
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fastvae {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Results below float32's normal range become zero while this lives: Adam's first moment of an idle weight decays to
// the smallest denormal and stays there, and arithmetic on denormals takes tens of times as long.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | (1ul << 24)));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  unsigned long saved_;
#endif
};

// The processor under this thread; where the system does not tell, a number that no other member has.
inline int processor([[maybe_unused]] int id) {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1 - id;
#endif
}

using Clock = std::chrono::steady_clock;

// A waiting thread spins this long. To wake a sleeper must take less (70 us in a virtual machine), or one sleep begets
// the next.
constexpr std::chrono::microseconds patience{120};

// Idle threads stay awake this long, so that the next chunk of steps finds them running.
constexpr std::chrono::microseconds awake{500};

}  // namespace

struct Team::Meeting {
  explicit Meeting(int size) : processors(size) {}

  alignas(64) std::atomic<int> waiting{0};
  alignas(64) std::atomic<unsigned> round{0};
  alignas(64) std::atomic<int> asleep{0};
  std::vector<std::atomic<int>> processors;  // under each member when it last waited
  std::mutex mutex;
  std::condition_variable wake;
};

// Whether another member waited on this processor last: it may stand on it still, held up by this one.
bool Team::shares_processor() const {
  const int here = processor(id);
  meeting_->processors[id].store(here, std::memory_order_relaxed);
  for (int other = 0; other < size; ++other)
    if (other != id && meeting_->processors[other].load(std::memory_order_relaxed) == here) return true;
  return false;
}

// A thread that lost its processor to another program is away for milliseconds. Those that wait for it sleep: it may
// have their processors meanwhile, and they are owed the time that they left. To yield owes them nothing.
void Team::barrier() {
  if (size == 1) return;
  unsigned round = meeting_->round.load(std::memory_order_relaxed);
  if (meeting_->waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    meeting_->waiting.store(0, std::memory_order_relaxed);
    meeting_->round.store(round + 1);  // before `asleep` is read, as a sleeper counts itself before it reads `round`
    if (meeting_->asleep.load()) {
      {
        std::lock_guard<std::mutex> lock(meeting_->mutex);
      }
      meeting_->wake.notify_all();
    }
    return;
  }
  auto spin = [&] {  // a microsecond, or until all have come
    for (int spins = 0; spins < 40; ++spins) {
      if (meeting_->round.load(std::memory_order_acquire) != round) return true;
      relax();
    }
    return false;
  };
  if (spin()) return;
  const Clock::time_point deadline = Clock::now() + patience;
  while (!shares_processor() && Clock::now() < deadline)
    if (spin()) return;
  std::unique_lock<std::mutex> lock(meeting_->mutex);
  meeting_->asleep.fetch_add(1);
  meeting_->wake.wait(lock, [&] { return meeting_->round.load() != round; });
  meeting_->asleep.fetch_sub(1);
}

struct ThreadPool::Crew {
  Team::Meeting meeting;
  std::atomic<unsigned> jobs{0};
  const std::function<void(Team&)>* job = nullptr;
  bool closing = false;
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;

  explicit Crew(int size) : meeting(size) {
    try {
      for (int id = 1; id < size; ++id) threads.emplace_back([this, id, size] { work(id, size); });
    } catch (const std::system_error& error) {
      close();
      throw Unavailable("cannot start " + std::to_string(size) + " threads (" + error.what() + "): lower n_threads");
    }
  }

  ~Crew() { close(); }

  void close() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      closing = true;
      jobs.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    for (auto& thread : threads) thread.join();
  }

  void work(int id, int size) {
    FlushDenormals flush;
    for (unsigned seen = 0;; ++seen) {
      auto deadline = Clock::now() + awake;
      while (jobs.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 64; ++i) relax();
        std::this_thread::yield();  // the calling thread may be waiting for this core
        if (Clock::now() < deadline) continue;
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return jobs.load(std::memory_order_acquire) != seen; });
      }
      if (closing) return;
      Team team(id, size, &meeting);
      (*job)(team);
      team.barrier();
    }
  }
};

ThreadPool::ThreadPool(int size) : size_(size) {}

void ThreadPool::run(const std::function<void(Team&)>& job) {
  FlushDenormals flush;
  if (size_ == 1) {
    Team team(0, 1, nullptr);
    return job(team);
  }
  if (crew_ && owner_ != getpid()) crew_.release();  // after fork: its threads exist in the parent alone
  if (!crew_) {
    crew_ = std::make_unique<Crew>(size_);
    owner_ = getpid();
  }
  {
    std::lock_guard<std::mutex> lock(crew_->mutex);
    crew_->job = &job;
    crew_->jobs.fetch_add(1, std::memory_order_release);
  }
  crew_->wake.notify_all();
  Team team(0, size_, &crew_->meeting);
  job(team);
  team.barrier();
}

ThreadPool::~ThreadPool() {
  if (crew_ && owner_ != getpid()) crew_.release();
}

}  // namespace fastvae
