// Where a fiber of cuda_cpu.h, which includes this, stands: `start` makes it begin at entry on a stack of its own, and
// `change` leaves one for another.
#pragma once
#include <ucontext.h>

#include <cstring>

namespace eqtp {
namespace cpu {

#if defined(__x86_64__)  // ucontext would make a system call at every switch
extern "C" __attribute__((visibility("hidden"))) void eqtp_fiber_switch(void** from, void* to);
asm(".text\n"
    ".weak eqtp_fiber_switch\n"
    ".hidden eqtp_fiber_switch\n"
    ".type eqtp_fiber_switch,@function\n"
    "eqtp_fiber_switch:\n"
    "push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    "mov %rsp,(%rdi)\n mov %rsi,%rsp\n"
    "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n");
struct Context {
  void* sp;
  // As if entry had been left in eqtp_fiber_switch: six registers, then where to return to
  void start(char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + bytes);
    top[-1] = nullptr;
    top[-2] = reinterpret_cast<void*>(entry);
    std::memset(top - 8, 0, 6 * sizeof(void*));
    sp = top - 8;
  }
  static void change(Context& from, Context& to) { eqtp_fiber_switch(&from.sp, to.sp); }
};
#else
struct Context {
  ucontext_t context;
  void start(char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void change(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
};
#endif

}  // namespace cpu
}  // namespace eqtp
