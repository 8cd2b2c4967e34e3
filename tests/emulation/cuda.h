// What the kernels and the glue of csrc/ take from CUDA, on one CPU thread. build.py rewrites their
// launches and shared arrays; here blocks run one after the other, and the threads of a block are
// fibers that change places at barriers and where the lanes of a warp exchange values.
//
// What is luck on a GPU fails here: shared memory starts as NaN and is a heap block of its own,
// where sanitizers see its ends; a barrier that threads never reach, or reach in different lines; a
// launch of an empty grid, off the current stream or outside of a device guard. Races show when
// the threads take turns in another order, and within a block to ThreadSanitizer: a fiber is a
// thread to it.
#pragma once

#include <setjmp.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice };
using cudaStream_t = struct EmulatedStream*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

enum Order { kAscending, kDescending, kShuffled };
enum class State { kReady, kAtWarp, kAtBarrier, kDone };

constexpr unsigned kLanes = 32, kMaxThreads = 1024;
constexpr std::size_t kStackBytes = 256 << 10;

struct Fiber {
  ucontext_t context;
  jmp_buf place;  // once it has begun: a jump is ten times faster than a change of contexts
  bool begun = false;
  void* of_sanitizer = nullptr;
};

struct Thread : Fiber {
  std::unique_ptr<char[]> stack;
  State state;
  int line;           // in which it waits
  int warps, blocks;  // how often it has waited for its warp and its block
};

struct Warp {
  char value[2][kLanes][24];  // in turn: nobody is two exchanges ahead of another lane
  unsigned waiting;
};

struct Machine {
  Thread thread[kMaxThreads];
  Warp warp[kMaxThreads / kLanes];
  char barrier[2];
  std::vector<std::pair<const void*, std::unique_ptr<char[]>>> shared;  // of the block, by key
  std::function<void()> body;
  Fiber scheduler;
  unsigned current, waiting, living;
  Order order = kAscending;
  std::mt19937 random{1};
  int guards = 0;
  int capability = 8;               // the major number
  cudaError_t error = cudaSuccess;  // the first since cudaGetLastError
  std::string message;
};
inline Machine machine;

// Sets the order in which threads take turns; for ctypes.
extern "C" __attribute__((visibility("default"), used)) inline void emulation_order(Order order) {
  machine.order = order;
}

// Sets the compute capability of the device; for ctypes.
extern "C" __attribute__((visibility("default"), used)) inline void emulation_capability(
    int major) {
  machine.capability = major;
}

// What the emulator reads and writes is no race of a kernel's.
struct Unseen {
#if defined(__SANITIZE_THREAD__)
  Unseen() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Unseen() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  ~Unseen() {}
#endif
};

inline void fail(const std::string& message) {
  if (machine.error != cudaSuccess) return;
  machine.error = cudaErrorInvalidValue;
  machine.message = message;
}

inline void switch_to(Fiber& from, Fiber& to, [[maybe_unused]] bool last = false) {
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.of_sanitizer, last ? 0 : __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.place) != 0) return;
  if (std::exchange(to.begun, true)) _longjmp(to.place, 1);
  setcontext(&to.context);
#endif
}

inline void leave(bool last = false) {
  switch_to(machine.thread[machine.current], machine.scheduler, last);
}

// Lets those of the threads [first, last) go on that wait for `state`.
inline void release(unsigned first, unsigned last, State state) {
  int line = 0;
  for (unsigned t = first; t < last; ++t) {
    Thread& thread = machine.thread[t];
    if (thread.state != state) continue;
    if (line != 0 && thread.line != line)
      fail("threads meet in lines " + std::to_string(line) + " and " + std::to_string(thread.line));
    line = thread.line;
    thread.state = State::kReady;
  }
}

inline void release_block() {
  if (machine.living == 0 || machine.waiting != machine.living) return;
  machine.waiting = 0;
  release(0, blockDim.x, State::kAtBarrier);
}

inline void wait(State state, int line, [[maybe_unused]] char* meeting) {
  Thread& me = machine.thread[machine.current];
#if defined(__SANITIZE_THREAD__)
  __tsan_release(meeting);
#endif
  me.state = state;
  me.line = line;
  if (state == State::kAtBarrier) {
    ++machine.waiting;
    release_block();
  } else {
    const unsigned warp = machine.current / kLanes;
    if (++machine.warp[warp].waiting == kLanes) {
      machine.warp[warp].waiting = 0;
      release(warp * kLanes, (warp + 1) * kLanes, state);
    }
  }
  leave();
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(meeting);
#endif
}

// Shows a value to the warp, and returns how to read any lane's; all lanes meet here.
template <typename T>
auto shown(const T& own, int line) {
  auto& value =
      machine.warp[machine.current / kLanes].value[machine.thread[machine.current].warps++ % 2];
  static_assert(sizeof(T) <= sizeof(value[0]) && std::is_trivially_copyable_v<T>);
  std::memcpy(value[machine.current % kLanes], &own, sizeof(T));
  wait(State::kAtWarp, line, value[0]);
  return [&value](int lane) {
    T other;
    std::memcpy(&other, value[lane], sizeof(T));
    return other;
  };
}

// The value of lane `from`.
template <typename T>
T exchange(T own, int from, int line) {
  Unseen unseen;
  return shown(own, line)(from);
}

// The array of the block that `key` stands for.
template <typename T>
T& shared(const void* key) {
  Unseen unseen;
  for (auto& [known, bytes] : machine.shared)
    if (known == key) return *reinterpret_cast<T*>(bytes.get());
  machine.shared.emplace_back(key, new char[sizeof(T)]);
  char* bytes = machine.shared.back().second.get();
  std::memset(bytes, 0xff, sizeof(T));
  return *reinterpret_cast<T*>(bytes);
}

inline void run_thread() {
  machine.body();
  {
    Unseen unseen;
    machine.thread[machine.current].state = State::kDone;
    --machine.living;
    release_block();
  }
  leave(true);
}

inline void run_block() {
  const unsigned count = blockDim.x;
  machine.shared.clear();
  machine.waiting = 0;
  machine.living = count;
  for (unsigned t = 0; t < count; ++t) {
    Thread& thread = machine.thread[t];
    if (!thread.stack) thread.stack.reset(new char[kStackBytes]);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.context, run_thread, 0);
    thread.begun = false;
    thread.state = State::kReady;
    thread.warps = thread.blocks = 0;
    machine.warp[t / kLanes].waiting = 0;
#if defined(__SANITIZE_THREAD__)
    thread.of_sanitizer = __tsan_create_fiber(0);
#endif
  }
  std::vector<unsigned> turn(count);
  std::iota(turn.begin(), turn.end(), 0u);
  if (machine.order == kDescending) std::reverse(turn.begin(), turn.end());
  for (bool moved = true; moved && machine.error == cudaSuccess;) {
    moved = false;
    if (machine.order == kShuffled) std::shuffle(turn.begin(), turn.end(), machine.random);
    for (const unsigned t : turn) {
      if (machine.thread[t].state != State::kReady) continue;
      moved = true;
      machine.current = t;
      threadIdx = dim3(t);
      machine.scheduler.begun = true;
      switch_to(machine.scheduler, machine.thread[t]);
      if (machine.error != cudaSuccess) break;
    }
  }
  for (unsigned t = 0; t < count; ++t) {
    const Thread& thread = machine.thread[t];
    if (thread.state != State::kDone)
      fail("thread " + std::to_string(t) + " waits for ever in line " +
           std::to_string(thread.line));
#if defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(thread.of_sanitizer);
#endif
  }
}

inline EmulatedStream* current() { return reinterpret_cast<EmulatedStream*>(&machine); }

struct Launch {
  dim3 grid, block;
  std::size_t shared_bytes;
  cudaStream_t stream;

  Launch(dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream)
      : grid(grid), block(block), shared_bytes(shared_bytes), stream(stream) {}

  template <typename Kernel, typename... Arguments>
  void run(const Kernel& kernel, const Arguments&... arguments) const {
    if (stream != current()) fail("a launch off the current stream");
    if (machine.guards == 0) fail("a launch outside of a device guard");
    if (grid.x == 0 || grid.y == 0 || grid.x > 0x7fffffff || grid.y > 0xffff || grid.z != 1 ||
        block.x == 0 || block.x > kMaxThreads || block.y != 1 || block.z != 1 || shared_bytes != 0)
      fail("a launch of this shape");
    machine.body = [&] { kernel(arguments...); };
#if defined(__SANITIZE_THREAD__)
    machine.scheduler.of_sanitizer = __tsan_get_current_fiber();
#endif
    gridDim = grid;
    blockDim = block;
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x && machine.error == cudaSuccess; ++x) {
        blockIdx = dim3(x, y);
        Unseen unseen;
        run_block();
      }
  }
};

// Of torch, for its CUDA devices.
struct DeviceGuard {
  explicit DeviceGuard(int32_t) { ++machine.guards; }
  ~DeviceGuard() { --machine.guards; }
  DeviceGuard(const DeviceGuard&) = delete;
};
inline int32_t current_stream(int32_t, void** stream) {
  *stream = current();
  return 0;
}

}  // namespace emulation

inline cudaError_t cudaGetLastError() {
  return std::exchange(emulation::machine.error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t) { return emulation::machine.message.c_str(); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  if (stream != emulation::current()) emulation::fail("a copy off the current stream");
  std::memcpy(to, from, bytes);
  return cudaGetLastError();
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = emulation::machine.capability;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

inline void __syncthreads(int line = __builtin_LINE()) {
  emulation::Unseen unseen;
  auto& machine = emulation::machine;
  char* meeting = &machine.barrier[machine.thread[machine.current].blocks++ % 2];
  emulation::wait(emulation::State::kAtBarrier, line, meeting);
}
inline void __syncwarp(unsigned = ~0u, int line = __builtin_LINE()) {
  emulation::exchange(0, 0, line);
}
template <typename T>
T __shfl_xor_sync(unsigned, T own, int mask, int line = __builtin_LINE()) {
  return emulation::exchange(own, static_cast<int>(threadIdx.x % 32) ^ mask, line);
}
template <typename T>
T __shfl_down_sync(unsigned, T own, int step, int line = __builtin_LINE()) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::exchange(own, lane + step < 32 ? lane + step : lane, line);
}
template <typename T>
T __shfl_up_sync(unsigned, T own, int step, int line = __builtin_LINE()) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return emulation::exchange(own, lane >= step ? lane - step : lane, line);
}
inline int32_t atomicAdd(int32_t* to, int32_t value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
[[noreturn]] inline void __trap() {
  emulation::Unseen unseen;
  emulation::fail("__trap");
  while (true) emulation::leave();
}

using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
inline float __half2float(__half value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
using std::fma;
template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}

namespace oskt {

// That of common/mma.cuh; sums go up through the columns.
template <typename S>
void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], const uint32_t (&b)[2],
         int line = __builtin_LINE()) {
  emulation::Unseen unseen;
  constexpr int kEntries = 4 / sizeof(S);  // of a word
  struct Words {
    uint32_t a[4], b[2];
  };
  const auto of_lane = emulation::shown(Words{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, line);
  const auto entry = [](uint32_t word, int e) {
    S entries[kEntries];
    std::memcpy(entries, &word, sizeof(word));
    return static_cast<float>(entries[e]);
  };
  const int lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, t = lane % 4;
  float* sums[2][2] = {{&c0, &c1}, {&c2, &c3}};
  for (int half = 0; half < 2; ++half)
    for (int next = 0; next < 2; ++next)
      for (int word = 0; word < 8; ++word) {
        const uint32_t left = of_lane(4 * g + word % 4).a[half + word / 4 * 2];
        const uint32_t right = of_lane(4 * (2 * t + next) + word % 4).b[word / 4];
        for (int e = 0; e < kEntries; ++e) *sums[half][next] += entry(left, e) * entry(right, e);
      }
}

}  // namespace oskt
