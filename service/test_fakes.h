// SPDX-License-Identifier: LGPL-2.1-or-later
//
// Stand-ins for what the manager reaches outside: workers, helpers, images. Tests only.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>

#include "service/manager.h"

namespace checkpointd::test {

// Workers that do what the test says: nothing until report() or die().
class FakeWorkers : public WorkerControl {
  public:
    void on_gone(Gone gone) override { gone_ = std::move(gone); }
    void start(const Job& job) override { started[job.id()] = job.dir(); }
    void adopt(const Job& job) override {
        adopted[job.id()] = job.dir();
        if (!alive.contains(job.id())) gone_(job.id(), std::nullopt);
    }
    void cancel(uint32_t job) override { cancelled.insert(job); }
    void reload_units(bool) override { ++reloads; }

    // Leaves a result as a worker does, and dies.
    void finish(uint32_t job, const JobResult& result) {
        ASSERT_OK(store_atomically(dir_of(job), kResultFile, to_json(result)));
        gone_(job, std::nullopt);
    }
    void die(uint32_t job, std::optional<Error> error = {}) { gone_(job, std::move(error)); }
    std::string dir_of(uint32_t job) {
        return started.contains(job) ? started[job] : adopted[job];
    }

    std::map<uint32_t, std::string> started;
    std::map<uint32_t, std::string> adopted;
    std::set<uint32_t> alive;  // those that adopt() finds running
    std::set<uint32_t> cancelled;
    int reloads = 0;

  private:
    static void ASSERT_OK(const Result<void>& result) {
        if (!result) std::abort();
    }
    Gone gone_;
};

class FakeHelpers : public Helpers {
  public:
    void recover(const std::string& job_dir, Done done) override {
        recovered.push_back(job_dir);
        answer(std::move(done), recovery);
    }
    void explain(const std::string& image_id, Done done) override { done("plan of " + image_id); }
    void remove_image(const std::string& image_id, Done done) override {
        removed.push_back(image_id);
        done(std::string());
    }

    void check_enable(const std::string& unit, Done done) override {
        if (unit.starts_with("early")) return done(fail(ErrorKind::kUnsupported, unit, "starts too early"));
        done(std::string());
    }

    std::vector<std::string> recovered;
    std::vector<std::string> removed;
    Result<std::string> recovery = std::string();
    bool hold = false;  // keep recoveries until let_go()
    void let_go() {
        for (auto& [done, result] : std::exchange(held_, {})) done(result);
    }

  private:
    void answer(Done done, const Result<std::string>& result) {
        if (hold) held_.emplace_back(std::move(done), result);
        else done(result);
    }
    std::vector<std::pair<Done, Result<std::string>>> held_;
};

class FakeImages : public ImageCatalog {
  public:
    Result<std::vector<ImageSummary>> list() override { return all; }
    Result<ImageSummary> get(const std::string& id) override {
        auto found = std::find_if(all.begin(), all.end(), [&](auto& image) { return image.id == id; });
        if (found != all.end()) return *found;
        return fail(ErrorKind::kNotFound, "image \"" + id + "\"", "there is none");
    }
    void add(const std::string& id, const std::string& unit, const std::string& state) {
        ImageSummary image;
        image.id = id;
        image.unit = unit;
        image.state = state;
        image.bytes = 4096;
        all.insert(all.begin(), image);
    }
    std::vector<ImageSummary> all;
};

class TemporaryDir {
  public:
    TemporaryDir() {
        char name[] = "/tmp/ckpt-service-XXXXXX";
        path_ = mkdtemp(name);
    }
    TemporaryDir(const TemporaryDir&) = delete;
    TemporaryDir& operator=(const TemporaryDir&) = delete;
    ~TemporaryDir() { std::filesystem::remove_all(path_); }
    const std::string& path() const { return path_; }

  private:
    std::string path_;
};

inline ManagerConfig test_config(const std::string& dir) {
    ManagerConfig config;
    config.run_dir = dir + "/run";
    config.store_dir = dir + "/store";
    config.vendor_policy_dir = dir + "/usr";
    config.admin_policy_dir = dir + "/etc";
    return config;
}

inline JobResult good_result(const std::string& image) {
    JobResult result;
    result.ok = true;
    result.image_id = image;
    result.bytes = 8192;
    result.pages = 2;
    result.frozen_usec = 1500;
    return result;
}

inline JobResult bad_result(ErrorKind kind, const std::string& message) {
    JobResult result;
    result.error = Error{kind, "x.service", message, "try harder", 0, {}};
    return result;
}

}  // namespace checkpointd::test
