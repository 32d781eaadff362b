#include "thread_pool.hpp"

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

// A phase lasts tens of microseconds; a thread that waits far longer has lost its core to somebody else.
constexpr int spins_before_yield = 2000;
inline void wait(int spins) {
  if (spins < spins_before_yield)
    relax();
  else
    std::this_thread::yield();
}

// Idle threads stay awake this long, so that the next chunk of steps finds them running.
constexpr std::chrono::microseconds awake{500};

}  // namespace

void Team::barrier() {
  if (size == 1) return;
  unsigned round = meeting_->round.load(std::memory_order_relaxed);
  if (meeting_->waiting.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
    meeting_->waiting.store(0, std::memory_order_relaxed);
    meeting_->round.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; meeting_->round.load(std::memory_order_acquire) == round; ++spins) wait(spins);
}

struct ThreadPool::Crew {
  Team::Meeting meeting;
  std::atomic<unsigned> jobs{0};
  std::atomic<int> running{0};
  const std::function<void(Team&)>* job = nullptr;
  bool closing = false;
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> threads;

  explicit Crew(int size) {
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
      auto deadline = std::chrono::steady_clock::now() + awake;
      while (jobs.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 64; ++i) relax();
        std::this_thread::yield();  // the calling thread may be waiting for this core
        if (std::chrono::steady_clock::now() < deadline) continue;
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return jobs.load(std::memory_order_acquire) != seen; });
      }
      if (closing) return;
      Team team(id, size, &meeting);
      (*job)(team);
      running.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int size) : size_(size) {}

void ThreadPool::run(const std::function<void(Team&)>& job) {
  FlushDenormals flush;
  if (size_ == 1) {
    Team::Meeting alone;
    Team team(0, 1, &alone);
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
    crew_->running.store(size_ - 1, std::memory_order_relaxed);
    crew_->jobs.fetch_add(1, std::memory_order_release);
  }
  crew_->wake.notify_all();
  Team team(0, size_, &crew_->meeting);
  job(team);
  for (int spins = 0; crew_->running.load(std::memory_order_acquire); ++spins) wait(spins);
}

ThreadPool::~ThreadPool() {
  if (crew_ && owner_ != getpid()) crew_.release();
}

}  // namespace fastvae
