// Index builders of the data pipeline: which tokens make a sample, and which source gives the next sample of a blend.
//
// Both give bit for bit what megatron-core's builders give (the tests hold them to it), written as one pass each.
// Every argument is checked; what is wrong becomes a Python ValueError.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

namespace {

void require(bool holds, const std::string &otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

// Sample index, [samples + 1, 2]: for each boundary between samples the position in `documents` and the token offset in
// that document where the next sample begins. Sample k is the `seq_length` tokens from k * seq_length on, and
// `extra_tokens` (0 or 1) more, which the next sample begins with. Sample 0 begins at (0, 0).
//
// lengths: tokens of each document of the dataset; documents: the order in which they are read, with repetitions.
template <typename T>
Array<T> build_sample_idx(const Array<int32_t> &lengths, const Array<int32_t> &documents, int64_t seq_length,
                          int64_t extra_tokens) {
    require(lengths.ndim() == 1 && documents.ndim() == 1, "lengths and documents must be one-dimensional");
    require(seq_length > 0, "seq_length must be positive, got " + std::to_string(seq_length));
    require(extra_tokens == 0 || extra_tokens == 1, "extra_tokens must be 0 or 1");
    const int64_t num_lengths = lengths.shape(0);
    const int64_t num_documents = documents.shape(0);
    require(num_documents <= static_cast<int64_t>(std::numeric_limits<T>::max()), "too many documents for this type");
    const int32_t *const length = lengths.data();
    const int32_t *const document = documents.data();

    int64_t total = 0;
    for (int64_t i = 0; i < num_documents; ++i) {
        const int32_t id = document[i];
        if (id < 0 || id >= num_lengths)
            throw std::invalid_argument("document " + std::to_string(id) + " is not among " + std::to_string(num_lengths));
        if (length[id] < 0) throw std::invalid_argument("document " + std::to_string(id) + " has a negative length");
        total += length[id];
    }
    const int64_t samples = total > extra_tokens ? (total - extra_tokens) / seq_length : 0;

    Array<T> index({static_cast<py::ssize_t>(samples + 1), static_cast<py::ssize_t>(2)});
    T *out = index.mutable_data();
    {
        py::gil_scoped_release release;
        *out++ = 0;
        *out++ = 0;
        int64_t at = 0;          // position in `documents`
        int64_t begin = 0;       // tokens before that document
        int64_t end = samples ? length[document[0]] : 0;  // tokens up to its end
        for (int64_t sample = 1; sample <= samples; ++sample) {
            const int64_t last = sample * seq_length + extra_tokens - 1;  // last token of the sample that ends here
            while (end <= last) {
                begin = end;
                end += length[document[++at]];
            }
            *out++ = static_cast<T>(at);
            *out++ = static_cast<T>(last + 1 - extra_tokens - begin);
        }
    }
    return index;
}

// Blend of sources with `weights` (which sum to 1): sample by sample the source that lags its share most, the first of
// them when several do. Returns for each of `size` samples its source (int16) and how many that source gave before.
py::tuple build_blending_indices(const Array<double> &weights, int64_t size) {
    require(weights.ndim() == 1 && weights.shape(0) > 0, "weights must be one-dimensional and not empty");
    const int64_t sources = weights.shape(0);
    require(sources <= std::numeric_limits<int16_t>::max(), "too many sources: " + std::to_string(sources));
    require(size >= 0, "size must not be negative, got " + std::to_string(size));
    const double *const weight = weights.data();
    for (int64_t i = 0; i < sources; ++i)
        require(std::isfinite(weight[i]) && weight[i] >= 0,
                "weight " + std::to_string(weight[i]) + " of source " + std::to_string(i));

    Array<int16_t> source_of(static_cast<py::ssize_t>(size));
    Array<int64_t> sample_of(static_cast<py::ssize_t>(size));
    int16_t *const source_out = source_of.mutable_data();
    int64_t *const sample_out = sample_of.mutable_data();
    {
        py::gil_scoped_release release;
        std::vector<int64_t> given(static_cast<size_t>(sources), 0);
        for (int64_t sample = 0; sample < size; ++sample) {
            const double position = std::max(static_cast<double>(sample), 1.0);
            int64_t chosen = 0;
            double largest_lag = weight[0] * position - static_cast<double>(given[0]);
            for (int64_t i = 1; i < sources; ++i) {
                const double lag = weight[i] * position - static_cast<double>(given[i]);
                if (lag > largest_lag) {
                    largest_lag = lag;
                    chosen = i;
                }
            }
            source_out[sample] = static_cast<int16_t>(chosen);
            sample_out[sample] = given[chosen]++;
        }
    }
    return py::make_tuple(source_of, sample_of);
}

}  // namespace

PYBIND11_MODULE(_indices, module) {
    module.doc() = "Index builders of the data pipeline, bit-identical to megatron-core's.";
    module.def("build_sample_idx_int32", &build_sample_idx<int32_t>, py::arg("lengths").noconvert(),
               py::arg("documents").noconvert(), py::arg("seq_length"), py::arg("extra_tokens") = 1);
    module.def("build_sample_idx_int64", &build_sample_idx<int64_t>, py::arg("lengths").noconvert(),
               py::arg("documents").noconvert(), py::arg("seq_length"), py::arg("extra_tokens") = 1);
    module.def("build_blending_indices", &build_blending_indices, py::arg("weights").noconvert(), py::arg("size"));
}
