// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "core/base/error.h"
#include "service/protocol.h"

namespace checkpointd {

// One option of a call: its D-Bus signature, and its value where the type is one we use.
struct OptionValue {
    std::string type;  // "s", "b", "t", or whatever the caller sent
    std::variant<std::monostate, std::string, bool, uint64_t> value;
};
using Options = std::map<std::string, OptionValue>;

// Reads options one by one; what was not asked for when finish() is called is an error that names it.
class OptionReader {
  public:
    explicit OptionReader(const Options& options) : options_(options) {}

    std::optional<std::string> text(const std::string& key) { return get<std::string>(key, "s"); }
    std::optional<bool> flag(const std::string& key) { return get<bool>(key, "b"); }
    std::optional<uint64_t> number(const std::string& key) { return get<uint64_t>(key, "t"); }
    void complain(Error error) { errors_.push_back(std::move(error)); }
    // Every mistake at once.
    Result<void> finish(const std::string& method);

  private:
    template <typename T>
    std::optional<T> get(const std::string& key, const std::string& type);

    const Options& options_;
    std::set<std::string> known_;
    std::vector<Error> errors_;
};

struct CheckpointOptions {
    std::string mode = "stop";
    std::optional<bool> sync;
    std::optional<Microseconds> timeout;
    std::optional<Fault> fault;
};
Result<CheckpointOptions> parse_checkpoint_options(const Options& options, bool faults_allowed);

struct RestoreOptions {
    std::optional<Microseconds> timeout;
    std::optional<Fault> fault;
};
Result<RestoreOptions> parse_restore_options(const Options& options, bool faults_allowed);

struct RemoveOptions {
    bool force = false;
};
Result<RemoveOptions> parse_remove_options(const Options& options);

// Is `flag` there and ours: may faults be injected on this host?
bool faults_allowed(const std::string& flag);
// Of jobs that nobody starts by hand: a test leaves its wish in the file that allows it.
std::optional<Fault> standing_fault(const std::string& flag);

// A unit name as systemd.unit(5) allows it, ".service" added where there is no suffix. Other types than
// services are refused: nothing else can be restored yet.
Result<std::string> normalise_unit(const std::string& name);

}  // namespace checkpointd
