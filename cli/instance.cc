// SPDX-License-Identifier: LGPL-2.1-or-later
#include "cli/instance.h"

#include <charconv>

namespace checkpointd::cli {

std::string unescape(std::string_view name) {
    std::string plain;
    while (!name.empty()) {
        unsigned char byte = 0;
        const bool is_escape = name.size() >= 4 && name.starts_with("\\x") &&
                               std::from_chars(&name[2], &name[2] + 2, byte, 16).ptr == &name[2] + 2;
        plain += is_escape ? static_cast<char>(byte) : name[0];
        name.remove_prefix(is_escape ? 4 : 1);
    }
    return plain;
}

Result<void> for_unit(const std::string& name, bool is_instance,
                      const std::function<Result<void>(const std::string&)>& work) {
    auto done = work(name);
    const std::string plain = is_instance ? unescape(name) : name;
    if (done || plain == name || done.error().kind != ErrorKind::kNotFound) return done;
    return work(plain);
}

}  // namespace checkpointd::cli
