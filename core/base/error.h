// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <tl/expected.hpp>

namespace checkpointd {

// What kind of trouble it is: what a caller may branch on, and what becomes the D-Bus error name.
enum class ErrorKind {
    kSystem,       // a system call failed; `errno_code` says how
    kUnsupported,  // an object that checkpointd cannot carry (yet); nothing was changed
    kBadInput,     // a request, policy or command line that cannot be right
    kBadImage,     // an image that is damaged, incomplete or not ours to read
    kNotFound,     // a unit, image, job or process that is not there
    kConflict,     // something is in the way: a taken PID, a running job, an existing image
    kDenied,       // the caller may not do this
    kGone,         // the process died while we worked on it: a normal outcome, not a fault
    kTimeout,      // a deadline of the policy passed
    kCancelled,    // the caller asked us to stop
    kInternal,     // a broken assumption of our own; always a bug
};

// Stable name of a kind, as used in JSON, logs and D-Bus error names ("Unsupported").
std::string_view to_string(ErrorKind kind);

// A failure as a value. It names the object, the step, what the kernel said and what the user can do.
// `causes` holds what lies beneath, or all blockers where several were found at once.
struct Error {
    ErrorKind kind = ErrorKind::kInternal;
    std::string object;   // "redis.service", "pid 12 fd 5 (/var/log/x)", "pages-1.img"
    std::string message;  // what happened, without object and without errno text
    std::string remedy;   // what the user can change; may be empty
    int errno_code = 0;   // 0 where no system call is to blame
    std::vector<Error> causes;

    // "OBJECT: MESSAGE: ERRNO TEXT (REMEDY)", one line, causes left out.
    std::string line() const;
    // line() and all causes, one per line, indented by their depth.
    std::string text() const;

    Error with_object(std::string new_object) &&;
    Error with_remedy(std::string new_remedy) &&;
    // A new error with this one as its cause; kind and errno are inherited.
    Error wrap(std::string outer_object, std::string outer_message) &&;
};

template <typename T>
using Result = tl::expected<T, Error>;

// Makes the failed Result of `kind`. Use as: return fail(ErrorKind::kNotFound, unit, "no such unit");
inline tl::unexpected<Error> fail(ErrorKind kind, std::string object, std::string message,
                                  std::string remedy = {}) {
    return tl::unexpected<Error>(
        Error{kind, std::move(object), std::move(message), std::move(remedy), 0, {}});
}

// The failure of the system call that just set errno (or `code`). ESRCH becomes kGone.
Error system_error(std::string object, std::string message, int code);
tl::unexpected<Error> fail_errno(std::string object, std::string message);
tl::unexpected<Error> fail_errno(std::string object, std::string message, int code);

// One error that carries all blockers found, or success when there are none.
Result<void> all_blockers(std::string object, std::string message, std::vector<Error> blockers);

}  // namespace checkpointd

// Returns the error of a Result<...> expression from the enclosing function, or goes on.
#define CKPT_TRY(expression)                                                      \
    do {                                                                          \
        if (auto ckpt_try_result = (expression); !ckpt_try_result)                \
            return ::tl::unexpected(std::move(ckpt_try_result).error());          \
    } while (0)

#define CKPT_CONCAT_(a, b) a##b
#define CKPT_CONCAT(a, b) CKPT_CONCAT_(a, b)
#define CKPT_ASSIGN_(tmp, declaration, expression)                                \
    auto tmp = (expression);                                                      \
    if (!tmp)                                                                     \
        return ::tl::unexpected(std::move(tmp).error());                          \
    declaration = std::move(*tmp)
// CKPT_ASSIGN(auto fd, open_file(...)): declares or assigns the value, or returns the error.
#define CKPT_ASSIGN(declaration, expression)                                      \
    CKPT_ASSIGN_(CKPT_CONCAT(ckpt_assign_, __COUNTER__), declaration, expression)
