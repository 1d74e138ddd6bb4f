// SPDX-License-Identifier: LGPL-2.1-or-later
#include "service/job_log.h"

#include <sys/uio.h>
#include <syslog.h>

// Where in our source it was said is of no use to its readers.
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include <fmt/core.h>

namespace checkpointd {
namespace {

// Stable: programs filter by them (MESSAGE_ID=, see systemd.journal-fields(7)).
constexpr const char* kBegan = "a7c0a9823e5a48e6aa7591c28659a661";
constexpr const char* kDone = "4801f6949478459297b4457d46d0a31b";
constexpr const char* kFailed = "2ad3e1bd07144013b160cecab55666b4";
constexpr const char* kUndone = "0f43d5971303494da42be2575a907bdd";

class Record {
  public:
    Record(const JobRequest& request, const char* id, int priority, const std::string& message) {
        add("MESSAGE", message);
        add("MESSAGE_ID", id);
        add("PRIORITY", std::to_string(priority));
        // What journalctl(1) looks for in records of others; a field may be there twice.
        add("OBJECT_SYSTEMD_UNIT", request.unit);
        add("OBJECT_SYSTEMD_UNIT", "checkpointd.service");
        add("UNIT", request.unit);
        add("CHECKPOINTD_JOB", std::to_string(request.id));
        add("CHECKPOINTD_TYPE", std::string(to_string(request.type)));
    }
    void add(const char* field, const std::string& value) {
        lines_.push_back(fmt::format("{}={}", field, value));
    }
    // Nobody can be told of a failure, and no job fails because of it.
    void send() {
        std::vector<iovec> parts;
        for (std::string& line : lines_) parts.push_back({line.data(), line.size()});
        (void)sd_journal_sendv(parts.data(), static_cast<int>(parts.size()));
    }

  private:
    std::vector<std::string> lines_;
};

std::string name_of(const JobRequest& request) {
    return fmt::format("Job {}: {} of {}", request.id, to_string(request.type), request.unit);
}

std::string seconds(uint64_t usec) { return fmt::format("{:.3f} s", static_cast<double>(usec) / 1e6); }

std::string told(const JobRequest& request, const JobResult& result) {
    std::string text = fmt::format("{} done in {}, image {}, {:.1f} MiB", name_of(request),
                                   seconds(result.total_usec), result.image_id,
                                   static_cast<double>(result.bytes) / (1 << 20));
    if (request.type == JobType::kCheckpoint)
        text += fmt::format(", the unit stood still for {}", seconds(result.frozen_usec));
    return text;
}

}  // namespace

void log_job_began(const JobRequest& request) {
    Record(request, kBegan, LOG_INFO, name_of(request) + " begins").send();
}

void log_job_ended(const JobRequest& request, const JobResult& result) {
    if (!result.ok) {
        const bool wanted = result.error.kind == ErrorKind::kCancelled;
        Record(request, kFailed, wanted ? LOG_NOTICE : LOG_ERR,
               fmt::format("{} {}: {}", name_of(request), wanted ? "was cancelled" : "failed",
                           result.error.text()))
            .send();
        return;
    }
    Record record(request, kDone, LOG_INFO, told(request, result));
    record.add("CHECKPOINTD_IMAGE", result.image_id);
    record.add("CHECKPOINTD_TOTAL_USEC", std::to_string(result.total_usec));
    record.add("CHECKPOINTD_FROZEN_USEC", std::to_string(result.frozen_usec));
    record.add("CHECKPOINTD_BYTES", std::to_string(result.bytes));
    record.send();
}

void log_job_undone(const JobRequest& request) {
    Record(request, kUndone, LOG_WARNING,
           name_of(request) + " was cut off by the death of its worker; what it left is undone")
        .send();
}

}  // namespace checkpointd
