// Threads that meet at barriers inside a step, spinning while the others run, and sleep between calls.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace fastvae {

// One thread's view of the team that runs a job together.
class Team {
 public:
  int id, size;
  int64_t phase = 0;  // for the job to count with
  void barrier();

  // Contiguous share of n tasks.
  int begin(int n) const { return static_cast<int>(static_cast<long>(n) * id / size); }
  int end(int n) const { return static_cast<int>(static_cast<long>(n) * (id + 1) / size); }

 private:
  friend class ThreadPool;
  struct Meeting;
  Team(int id, int size, Meeting* meeting) : id(id), size(size), meeting_(meeting) {}
  bool shares_processor() const;
  Meeting* meeting_;
};

class ThreadPool {
 public:
  explicit ThreadPool(int size);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Runs job(team) on every thread, the calling one as id 0, and returns when all are through. Threads start with the
  // first run, and again in a forked child, which inherits none. Throws Unavailable when they cannot be started.
  void run(const std::function<void(Team&)>& job);

 private:
  struct Crew;
  int size_;
  int owner_ = 0;  // process id that started the crew
  std::unique_ptr<Crew> crew_;
};

}  // namespace fastvae
