// A pretend accelerator for tests: tensors in memory of their own, every operation computed by the CPU.
//
// It behaves as a GPU where programs go wrong: `.numpy()` raises, an operation on tensors of both
// devices raises (but for numbers without dimensions, and for indices, as on CUDA), and what a GPU
// would wait for is counted: reads of single numbers, copies to the host, operations whose result
// has a size that depends on values.
#include <torch/extension.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <cstdlib>
#include <map>
#include <set>
#include <string>

namespace {

constexpr auto kPretend = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(kPretend, 0);
const c10::Stream kStream(c10::Stream::DEFAULT, kDevice);

std::map<std::string, long> counts;            // the tests run in one thread
bool in_fallback = false;                      // copies made by the fallback itself are not counted
bool counts_names = false;
std::map<std::string, long> names;             // operations by name, for the profile

// ---- memory ------------------------------------------------------------------------------------
struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* at = size ? std::aligned_alloc(64, (size + 63) / 64 * 64) : nullptr;
    if (size && !at) throw std::bad_alloc();
    return {at, at, &std::free, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, std::size_t size) const override { std::memcpy(to, from, size); }
};
Memory memory;
REGISTER_ALLOCATOR(kPretend, &memory);

// ---- one device, one stream --------------------------------------------------------------------
struct Device final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kPretend;
  Device() = default;
  explicit Device(c10::DeviceType) {}
  c10::DeviceType type() const override { return kPretend; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Stream getStream(c10::Device) const noexcept override { return kStream; }
  c10::Stream getNewStream(c10::Device, int) const override { return kStream; }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return kStream; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Device);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  bool isPinnedPtr(const void*) const override { return false; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::getDefaultCPUGenerator().clone(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    static const at::Generator generator = at::detail::getDefaultCPUGenerator();
    return generator;
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    at::native::resize_bytes_nocuda(storage, size);
  }
};

// ---- tensors -----------------------------------------------------------------------------------
using Dtype = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Where = std::optional<at::Device>;
using Pinned = std::optional<bool>;
using Format = std::optional<at::MemoryFormat>;
using Sizes = c10::SymIntArrayRef;

at::IntArrayRef plain(Sizes sizes) { return C10_AS_INTARRAYREF_SLOW(sizes); }

at::Tensor empty(Sizes size, Dtype dtype, Layout, Where, Pinned, Format format) {
  return at::detail::empty_generic(plain(size), &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(Sizes size, Sizes stride, Dtype dtype, Layout, Where, Pinned) {
  return at::detail::empty_strided_generic(plain(size), plain(stride), &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor on_host(const at::Tensor& tensor) {   // the same memory, seen as a tensor of the CPU
  if (tensor.device().is_cpu()) return tensor;
  const int64_t numbers = tensor.storage().nbytes() / tensor.itemsize();
  const auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
  return at::from_blob(tensor.storage().mutable_data(), {numbers}, options)
      .as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (!in_fallback && from.device().is_cpu() != to.device().is_cpu()) counts[to.device().is_cpu() ? "to_host" : "to_device"]++;
  on_host(to).copy_(on_host(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::native::resize_(to, from.sizes(), std::nullopt);
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& tensor) {
  counts["items"]++;
  return on_host(tensor).item();
}

at::Tensor as_strided(const at::Tensor& tensor, Sizes size, Sizes stride, std::optional<c10::SymInt> offset) {
  const auto start = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(tensor, plain(size), plain(stride), start);
}

at::Tensor view(const at::Tensor& tensor, Sizes size) { return at::native::view(tensor, plain(size)); }

at::Tensor reshape_alias(const at::Tensor& tensor, Sizes size, Sizes stride) {
  return at::native::_reshape_alias(tensor, plain(size), plain(stride));
}

at::Tensor unfold(const at::Tensor& tensor, int64_t dim, int64_t size, int64_t step) {
  return at::native::unfold(tensor, dim, size, step);
}

const at::Tensor& resize_(const at::Tensor& tensor, Sizes size, Format format) {
  return at::native::resize_(tensor, plain(size), format);
}

at::Tensor& set_storage(at::Tensor& tensor, c10::Storage storage) { return at::native::set_(tensor, storage); }

at::Tensor& set_storage_at(at::Tensor& tensor, c10::Storage storage, c10::SymInt offset, Sizes size, Sizes stride) {
  return at::native::set_storage_cpu_(tensor, storage, offset.expect_int(), plain(size), plain(stride));
}

// ---- everything else: by the CPU ---------------------------------------------------------------
const std::set<std::string> kTakesHostIndices = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"};
const std::set<std::string> kSizeByValue = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
                                            "aten::unique_consecutive", "aten::equal", "aten::bincount", "aten::repeat_interleave"};

void visit(const c10::IValue& value, const std::function<void(const at::Tensor&)>& act) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) act(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& one : value.toListRef()) visit(one, act);
  }
}

void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string name = op.schema().name();
  const size_t size = op.schema().arguments().size();
  bool host = false, pretend = false, mask = false;
  for (const c10::IValue& value : torch::jit::last(*stack, size)) {
    visit(value, [&](const at::Tensor& tensor) {
      if (tensor.device().type() == kPretend) pretend = true;
      else if (tensor.dim() > 0) host = true;
      if (tensor.scalar_type() == at::kBool && kTakesHostIndices.count(name)) mask = true;
    });
  }
  TORCH_CHECK(!(host && pretend) || kTakesHostIndices.count(name),
              "Expected all tensors to be on the same device, but found at least two devices, pretend:0 and cpu (", name, ")");
  counts["operations"]++;
  if (counts_names) names[name]++;
  if (mask || kSizeByValue.count(name)) counts["sizes"]++;
  struct Inside {
    bool before = in_fallback;
    Inside() { in_fallback = true; }
    ~Inside() { in_fallback = before; }
  } inside;
  at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &item);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("unfold", &unfold);
  library.impl("resize_", &resize_);
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Storage_storage_offset", &set_storage_at);
}

// ---- mixed precision: products in the lower precision, everything else as it comes ----------------
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

}  // namespace

namespace at::autocast {
TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  KERNEL_PRIVATEUSEONE(linear, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(matmul, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(mm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(bmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(addmm, lower_precision_fp)
  KERNEL_PRIVATEUSEONE(scaled_dot_product_attention, lower_precision_fp)
}
}  // namespace at::autocast

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("counts", [] { return counts; });
  module.def("names", [] { return names; });
  module.def("reset", [](bool by_name) { counts.clear(); names.clear(); counts_names = by_name; }, py::arg("by_name") = false);
}
