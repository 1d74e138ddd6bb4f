// SPDX-License-Identifier: LGPL-2.1-or-later
//
// The user namespace of a forest. It is never made anew: systemd makes one for the stage, and the
// tasks join it. Ids in images are those of the engine's own user namespace, so an image only fits
// where the same ids are mapped to the same.
#pragma once

#include <sys/types.h>
#include <optional>
#include <string>

#include "core/base/error.h"
#include "images/proto/namespaces.pb.h"

namespace checkpointd {

using UserNamespace = std::optional<images::userns_entry>;  // none: ours

// Of a process, with its ids as we number them.
Result<UserNamespace> read_user_namespace(pid_t pid);
// A line of /proc/PID/uid_map per extent.
Result<images::userns_entry> parse_user_namespace(const std::string& uid_map,
                                                  const std::string& gid_map);

// Fails unless tasks of the one can live on in the other.
Result<void> check_user_namespaces(const UserNamespace& image, const UserNamespace& target);

}  // namespace checkpointd
