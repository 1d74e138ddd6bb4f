// SPDX-License-Identifier: LGPL-2.1-or-later
#include "core/base/error.h"

#include <cerrno>
#include <cstring>

namespace checkpointd {

std::string_view to_string(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::kSystem: return "System";
        case ErrorKind::kUnsupported: return "Unsupported";
        case ErrorKind::kBadInput: return "BadInput";
        case ErrorKind::kBadImage: return "BadImage";
        case ErrorKind::kNotFound: return "NotFound";
        case ErrorKind::kConflict: return "Conflict";
        case ErrorKind::kDenied: return "Denied";
        case ErrorKind::kGone: return "Gone";
        case ErrorKind::kTimeout: return "Timeout";
        case ErrorKind::kCancelled: return "Cancelled";
        case ErrorKind::kInternal: return "Internal";
    }
    return "Internal";
}

std::string Error::line() const {
    std::string out = object.empty() ? message : fmt::format("{}: {}", object, message);
    if (errno_code != 0)
        out += fmt::format(": {}", std::strerror(errno_code));
    if (!remedy.empty())
        out += fmt::format(" ({})", remedy);
    return out;
}

static void append_text(const Error& error, int depth, std::string& out) {
    out += std::string(static_cast<size_t>(depth) * 2, ' ') + error.line();
    for (const Error& cause : error.causes) {
        out += '\n';
        append_text(cause, depth + 1, out);
    }
}

std::string Error::text() const {
    std::string out;
    append_text(*this, 0, out);
    return out;
}

Error Error::with_object(std::string new_object) && {
    object = std::move(new_object);
    return std::move(*this);
}

Error Error::with_remedy(std::string new_remedy) && {
    remedy = std::move(new_remedy);
    return std::move(*this);
}

Error Error::wrap(std::string outer_object, std::string outer_message) && {
    Error outer{kind, std::move(outer_object), std::move(outer_message), {}, 0, {}};
    outer.causes.push_back(std::move(*this));
    return outer;
}

Error system_error(std::string object, std::string message, int code) {
    return Error{code == ESRCH ? ErrorKind::kGone : ErrorKind::kSystem,
                 std::move(object), std::move(message), {}, code, {}};
}

tl::unexpected<Error> fail_errno(std::string object, std::string message) {
    return fail_errno(std::move(object), std::move(message), errno);
}

tl::unexpected<Error> fail_errno(std::string object, std::string message, int code) {
    return tl::unexpected<Error>(system_error(std::move(object), std::move(message), code));
}

Result<void> all_blockers(std::string object, std::string message, std::vector<Error> blockers) {
    if (blockers.empty())
        return {};
    ErrorKind kind = blockers.front().kind;
    return tl::unexpected<Error>(
        Error{kind, std::move(object), std::move(message), {}, 0, std::move(blockers)});
}

}  // namespace checkpointd
