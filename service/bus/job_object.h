// SPDX-License-Identifier: LGPL-2.1-or-later
#pragma once

#include "dbus/compat.h"
#include "org.checkpointd1.Job.adaptor.h"
#include "service/bus/authority.h"
#include "service/manager.h"

namespace checkpointd {

// A job on the bus. Shows the Job it was made for, which must outlive it.
class JobObject : public sdbus::AdaptorInterfaces<org::checkpointd1::Job_adaptor> {
  public:
    JobObject(bus::Connection& connection, const Job& job, Manager& manager, Authority& authority);
    ~JobObject();
    JobObject(const JobObject&) = delete;
    JobObject& operator=(const JobObject&) = delete;

    void changed(const std::vector<std::string>& properties);
    static sdbus::ObjectPath path(uint32_t id);

  private:
    void Cancel(sdbus::Result<>&& result) override;
    uint32_t Id() override { return job_.id(); }
    std::string Type() override { return std::string(to_string(job_.request().type)); }
    std::string Unit() override { return job_.request().unit; }
    std::string State() override { return std::string(to_string(job_.state())); }
    std::string Phase() override { return job_.phase(); }
    double Progress() override { return job_.progress(); }
    uint64_t Bytes() override { return job_.bytes(); }
    uint64_t BytesTotal() override { return job_.bytes_total(); }
    std::string ErrorName() override;
    std::string ErrorMessage() override;
    uint64_t StartedUsec() override { return job_.request().created_usec; }
    uint64_t FinishedUsec() override { return job_.finished_usec(); }
    std::map<std::string, sdbus::Variant> Result() override;

    const Job& job_;
    Manager& manager_;
    Authority& authority_;
};

// The caller of the method that is being handled by `object`.
Caller current_caller(const sdbus::IObject& object);

}  // namespace checkpointd
