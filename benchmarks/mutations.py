"""Break one function at a time, and check that a test fails for each.

The package and its tests are copied to a temporary folder. Each mutation of the table below replaces one text in a file
of the copy, runs the test that should fail, and restores the file. A mutation is *killed* if its test passes without
the mutation and fails with it. It *survived* if its test passes in both cases. The exit code is 0 if all mutations were
killed, otherwise 1.

    python benchmarks/mutations.py [--only TEXT,TEXT] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

REPOSITORY = Path(__file__).resolve().parent.parent
IGNORED_FILES = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "dist", "runs")
TIMEOUT_S = 900
PASSED, FAILED = 0, 1  # exit codes of pytest; with any other exit code, no test was run


@dataclass(frozen=True)
class Mutation:
    """A change that breaks a function.

    Attributes:
        function: description of the function that is broken.
        file: path of the file below ``edgerec``.
        old: text to replace; occurs exactly once in the file.
        new: replacement of ``old``.
        test: test that must fail with the mutation, e.g. ``test_split.py::test_name``.
    """

    function: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    # data
    Mutation(
        "split: fractions",
        "data/hash_split.py",
        "np.cumsum(request.fractions), groups.hashes",
        "np.cumsum(request.fractions[::-1]), groups.hashes",
        "data/test_split.py::test_requested_fractions_are_used",
    ),
    Mutation(
        "split: seed",
        "data/hash_split.py",
        'hashlib.sha256(b"%d\\0%b" % (seed, key))',
        'hashlib.sha256(b"%d\\0%b" % (0, key))',
        "data/test_dataset.py::test_split_is_stratified_seeded_and_complete",
    ),
    Mutation(
        "split: refusal of wrong fractions",
        "data/hash_split.py",
        "> max(TOLERANCE, chance) + 1e-9",
        "> 1",
        "data/test_split.py::test_requested_fractions_of_groups_are_used_or_refused",
    ),
    Mutation(
        "split: exact copies in one subset",
        "data/hash_split.py",
        "        if contents is not None:\n            return cls(tuple(contents[0].tolist()), contents[1])\n",
        "",
        "data/test_split.py::test_exact_copies_are_in_the_same_subset",
    ),
    Mutation(
        "split: groups linked by a copy",
        "data/hash_split.py",
        "of_image if self.copies is None else",
        "of_image if True else",
        "data/test_split.py::test_exact_copies_are_in_the_same_subset",
    ),
    Mutation(
        "split: every class in each subset",
        "data/hash_split.py",
        "sets[spare[0]], was_moved[spare[0]] = number, True",
        "was_moved[spare[0]] = True",
        "data/test_split.py::test_each_class_is_in_each_subset",
    ),
    Mutation(
        "split: copies of the data's own test images",
        "data/split.py",
        "kept_train = train[~np.isin(contents[train], contents[np.concatenate([test, val])])]",
        "kept_train = train",
        "data/test_split.py::test_copies_of_the_own_test_images_are_excluded",
    ),
    Mutation(
        "split: recorded split of a run",
        "data/split.py",
        "used = np.concatenate([val, test, excluded])",
        "used = np.concatenate([test, excluded])",
        "data/test_split.py::test_resumed_training_keeps_its_original_split",
    ),
    Mutation(
        "merged data: position of an image",
        "data/merged.py",
        "part[flat[inside] - (self._ends[number] - len(part))]",
        "part[flat[inside] % len(part)]",
        "data/test_merged_data.py::test_merged_labels_are_the_union_and_images_are_unchanged",
    ),
    Mutation(
        "merged data: class of an image",
        "data/raw_dataset.py",
        "classes=indices[part.classes], labels=labels",
        "labels=labels",
        "data/test_merged_data.py::test_merged_labels_are_the_union_and_images_are_unchanged",
    ),
    Mutation(
        "bit depth: files with more than 8 bits",
        "data/bit_depth.py",
        "return bits_per_sample(start) > 8",
        "return bits_per_sample(start) > 16",
        "data/test_image_files.py::test_levels_are_determined_over_the_data_set",
    ),
    Mutation(
        "bit depth: range over all files",
        "data/bit_depth.py",
        "total = sample_range if total is None else total + sample_range",
        "total = sample_range",
        "data/test_bit_depth.py::test_levels_are_the_range_over_all_files",
    ),
    Mutation(
        "pixel cache: least recently used",
        "data/cache_limit.py",
        "        os.utime(description)\n",
        "        pass\n",
        "data/test_pixel_cache.py::test_least_recently_used_entries_are_deleted",
    ),
    Mutation(
        "pixel cache: a changed image",
        "data/cache.py",
        'key.update(f"\\0{status.st_size}\\0{status.st_mtime_ns}\\n".encode())',
        'key.update(b"\\n")',
        "data/test_dataset.py::test_changed_image_is_read_again",
    ),
    Mutation(
        "mixup and cutmix: soft labels",
        "data/augmentation/mixing.py",
        "soft_labels = fraction * soft_labels + (1 - fraction) * tf.roll(soft_labels, 1, axis=0)",
        "soft_labels = 0.5 * soft_labels + 0.5 * tf.roll(soft_labels, 1, axis=0)",
        "data/test_augmentation.py::test_soft_labels_match_the_mixed_pixels",
    ),
    Mutation(
        "layout: names of splits",
        "data/directory_layout.py",
        '("val", "valid", "validation", "validate", "dev")',
        '("val",)',
        "data/test_directory_layout.py::test_usual_names_of_splits_are_recognized",
    ),
    # train
    Mutation(
        "class weights",
        "train/input_pipeline.py",
        "counts.sum() / (len(counts) * np.maximum(counts, 1))",
        "np.maximum(counts, 1) * len(counts) / counts.sum()",
        "train/test_class_weights.py::test_each_image_has_the_weight_of_its_class",
    ),
    Mutation(
        "class weights of mixed images",
        "train/input_pipeline.py",
        "tf.linalg.matvec(classes, weights)",
        "tf.gather(weights, tf.argmax(classes, axis=1))",
        "train/test_class_weights.py::test_mixed_image_has_the_mean_weight_of_its_classes",
    ),
    Mutation(
        "order of the images in each epoch",
        "train/input_pipeline.py",
        "stateless_shuffle(tf.constant(part), seed=[recipe.seed, epoch])",
        "stateless_shuffle(tf.constant(part), seed=[recipe.seed, 0 * epoch])",
        "data/test_dataset.py::test_batches_depend_only_on_seed_and_epoch",
    ),
    Mutation(
        "warm-up",
        "train/optimizer.py",
        "warmup = min(warmup, steps // 2)",
        "warmup = 0",
        "train/test_stages.py::test_every_stage_warms_up",
    ),
    Mutation(
        "cosine",
        "train/optimizer.py",
        "return decay(peak, max(1, steps))",
        "return decay(peak, max(1, 2 * steps))",
        "train/test_training_steps.py::test_cosine_schedule_falls_to_zero",
    ),
    Mutation(
        "plateau",
        "train/optimizer.py",
        "elif waited >= PATIENCE:",
        "elif waited > PATIENCE:",
        "train/test_long_runs.py::test_plateau_halves_the_rate_after_three_epochs_without_improvement",
    ),
    Mutation(
        "decoupled weight decay",
        "train/optimizer.py",
        '"weight_decay": weight_decay or None}',
        '"weight_decay": None}',
        "train/test_weight_decay.py::test_kernel_without_gradient_shrinks_by_rate_times_decay",
    ),
    Mutation(
        "weight decay: kernels only",
        "train/optimizer.py",
        "    result.exclude_from_weight_decay(var_names=[NOT_DECAYED])\n",
        "",
        "train/test_weight_decay.py::test_only_kernels_decay",
    ),
    Mutation(
        "weight decay after a resume",
        "train/optimizer.py",
        '    getattr(copy, "inner_optimizer", copy).exclude_from_weight_decay(var_names=[NOT_DECAYED])\n',
        "",
        "train/test_weight_decay.py::test_only_kernels_decay",
    ),
    Mutation(
        "optimizer state after a resume",
        "train/optimizer.py",
        "        variable.assign(value)\n",
        "        pass\n",
        "train/test_fit.py::test_killed_run_resumes_and_ends_like_an_uninterrupted_run",
    ),
    Mutation(
        "gradient accumulation: mean of the micro-batches",
        "train/training_step.py",
        "total + _dense(gradient) / micro_batches",
        "total + _dense(gradient)",
        "train/test_long_runs.py::test_gradient_accumulation_and_xla_give_the_same_weights",
    ),
    Mutation(
        "early stopping for each stage",
        "train/early_stopping.py",
        "return [row for row in history if _stage_number(recipe, row) == stage.number]",
        "return list(history)",
        "train/test_stages.py::test_early_stopping_ends_only_the_current_stage_also_after_a_resume",
    ),
    Mutation(
        "time limit for each stage",
        "train/early_stopping.py",
        "train.max_hours * stage.time_fraction * 3600",
        "train.max_hours * 3600",
        "train/test_stages.py::test_time_limit_is_divided_among_the_stages",
    ),
    Mutation(
        "learning rate of transfer stages",
        "train/stages.py",
        "rate = train.learning_rate * transfer.rate",
        "rate = train.learning_rate",
        "train/test_transfer.py::test_stages_train_the_head_first_and_then_more_and_more_layers",
    ),
    Mutation(
        "frozen batch normalization in transfer",
        "train/transfer.py",
        "    if recipe.transfer.freeze_bn:\n",
        "    if False:\n",
        "train/test_transfer.py::test_each_stage_trains_its_layers",
    ),
    Mutation(
        "layers of nested models in transfer",
        "train/transfer.py",
        "body = [layer for layer in _leaf_layers(model) if",
        "body = [layer for layer in model.layers if",
        "train/test_transfer.py::test_layers_in_nested_models_and_wrappers_are_frozen_and_unfrozen",
    ),
    Mutation(
        "features of a backbone: the softmax after the head",
        "train/transfer.py",
        '{"Activation", "Softmax", "Dropout",',
        '{"Dropout",',
        "train/test_backbone.py::test_convolutional_head_is_replaced",
    ),
    Mutation(
        "leakage: test images among the training images of the weights",
        "train/leakage.py",
        '            raise RecipeError(\n                f"{what} was trained on',
        '            log.warning(\n                f"{what} was trained on',
        "train/test_leakage.py::test_weights_of_another_split_are_refused",
    ),
    Mutation(
        "leakage: weights of weights",
        "train/leakage.py",
        "return cls(np.concatenate([train, inherited]), val,",
        "return cls(train, val,",
        "train/test_leakage.py::test_training_images_of_earlier_weights_are_recognized",
    ),
    Mutation(
        "best epoch",
        "train/run.py",
        'key=lambda row: (row.get("val_accuracy", 0.0), -row["val_loss"])',
        'key=lambda row: row["epoch"]',
        "train/test_fit.py::test_best_epoch_prefers_accuracy_then_loss",
    ),
    Mutation(
        "distillation: weights of the images",
        "train/distillation_loss.py",
        "divergence *= tf.cast(weights, divergence.dtype)",
        "pass",
        "compress/test_finetune_weights.py::test_distillation_loss_applies_image_weights",
    ),
    Mutation(
        "mixed precision: layers that stay float32",
        "train/precision.py",
        "if layer in model.layers[-2:] or",
        "if",
        "train/test_precision.py::test_layers_that_bfloat16_makes_slower_stay_in_float32",
    ),
    Mutation(
        "order of the labels",
        "train/label_order.py",
        "    if not order.doubtful:\n        return\n",
        "    return\n",
        "data/test_label_order.py::test_two_swapped_classes_are_refused",
    ),
    Mutation(
        "comparison with the majority class",
        "train/baseline.py",
        "accuracy <= level + margin",
        "accuracy <= level",
        "train/test_training_checks.py::test_is_near_compares_accuracy_with_the_majority_baseline",
    ),
    # compress
    Mutation(
        "QAT: dropout in range calibration",
        "compress/qat.py",
        "    for layer in replaced:\n        layer.call = partial(_call_in_inference, layer.call)\n    try:",
        "    replaced = []\n    try:",
        "compress/test_finetune.py::test_dropout_does_not_widen_ranges",
    ),
    Mutation(
        "QAT: frozen ranges",
        "compress/qat.py",
        "return self.quantizer(inputs, False, weights, **options)",
        "return self.quantizer(inputs, training, weights, **options)",
        "compress/test_finetune.py::test_final_ranges_are_those_of_images_without_augmentation",
    ),
    Mutation(
        "QAT: start of the moving averages",
        "compress/qat.py",
        "start_weight = EMA_DECAY**CALIBRATION_STEPS",
        "start_weight = 0.0",
        "compress/test_methods.py::test_ranges_are_calibrated_twice_and_frozen_in_the_last_third",
    ),
    Mutation(
        "QAT: range of the input",
        "compress/fake_quantization.py",
        "(255 - normalize.mean) / normalize.std",
        "(200 - normalize.mean) / normalize.std",
        "compress/test_methods.py::test_ranges_are_calibrated_twice_and_frozen_in_the_last_third",
    ),
    Mutation(
        "QAT: bits of the weights",
        "compress/fake_quantization.py",
        "            quantizer.num_bits = count\n",
        "            pass\n",
        "compress/test_methods.py::test_fewer_weight_bits_compress_better",
    ),
    Mutation(
        "fine-tuning: epochs with frozen ranges only",
        "compress/finetune.py",
        "keep_from = max(keep_from, frozen_from) if freeze else keep_from",
        "pass",
        "compress/test_fine_tuning_epochs.py::test_weights_before_frozen_ranges_are_not_returned",
    ),
    Mutation(
        "fine-tuning: best epoch",
        "compress/finetune.py",
        "model.set_weights(state.best)",
        "_copy(trained, model)",
        "compress/test_fine_tuning_epochs.py::test_weights_of_best_epoch_are_returned",
    ),
    Mutation(
        "fine-tuning: frozen batch normalization",
        "train/backend.py",
        "        layer.trainable = False\n",
        "        pass\n",
        "compress/test_finetune.py::test_retraining_follows_freeze_bn",
    ),
    Mutation(
        "fine-tuning: optimizer state after a resume",
        "compress/finetune.py",
        "            variable.assign(value)\n",
        "            pass\n",
        "compress/test_finetune.py::test_intact_state_is_restored_with_optimizer",
    ),
    Mutation(
        "fine-tuning: damaged states",
        "compress/finetune.py",
        'if value.dtype.kind == "f" and not np.isfinite(value).all():',
        "if False:",
        "compress/test_finetune.py::test_damaged_state_is_ignored_completely",
    ),
    Mutation(
        "fine-tuning: gradient accumulation",
        "compress/finetune.py",
        "        micro_batches=tune.train.accumulate,\n",
        "",
        "compress/test_finetune.py::test_fine_tuning_accumulates_gradients",
    ),
    Mutation(
        "fine-tuning: the float model as teacher",
        "compress/finetune.py",
        "        teacher=tune.teacher,\n",
        "",
        "compress/test_methods.py::test_fine_tuning_with_teacher_approaches_float_outputs",
    ),
    Mutation(
        "pruning: schedule of the masks",
        "compress/prune.py",
        "begin_step=0, end_step=end, frequency=frequency)",
        "begin_step=0, end_step=4 * end, frequency=frequency)",
        "compress/test_fine_tuning_epochs.py::test_pruning_reaches_sparsity_although_early_epoch_is_better",
    ),
    Mutation(
        "pruning: epochs with the full sparsity only",
        "compress/prune.py",
        "        keep_from=tune.epochs // 2,\n",
        "",
        "compress/test_fine_tuning_epochs.py::test_pruning_reaches_sparsity_although_early_epoch_is_better",
    ),
    Mutation(
        "clustering: zeros stay zero",
        "compress/cluster.py",
        '"preserve_sparsity": preserve_sparsity,',
        '"preserve_sparsity": False,',
        "compress/test_methods.py::test_clustering_and_pruning_survive_quantization",
    ),
    Mutation(
        "channel pruning: choice of the channels",
        "compress/channel_selection.py",
        'np.argsort(scores[group], kind="stable")',
        'np.argsort(-scores[group], kind="stable")',
        "compress/test_channels.py::test_dead_channels_are_removed_first_without_changing_outputs",
    ),
    Mutation(
        "channel pruning: importance by the loss",
        "compress/channel_importance.py",
        "        scores += change**2\n",
        "        scores += 1\n",
        "compress/test_channels.py::test_fine_tuning_restores_accuracy",
    ),
    Mutation(
        "PTQ: range of the input",
        "compress/calibration/api.py",
        "pinned[0].reshape(-1)[:2] = (0, 255)",
        "pass",
        "compress/test_quantize.py::test_pin_range_changes_two_values",
    ),
    Mutation(
        "PTQ: calibration images of all classes",
        "compress/calibration/sampling.py",
        "return _round_robin([rng.permutation(members) for members in _by_class(dataset, part)], count, rng)",
        "return part[:count]",
        "compress/test_quantize.py::test_calibration_images_are_stratified_seeded_and_from_training_set",
    ),
    Mutation(
        "accuracy gate",
        "compress/accuracy_drop.py",
        "if drop > max_drop + 1e-9:",
        "if drop > 100:",
        "compress/test_quantize.py::test_gate_recommends_options_that_are_not_used_yet",
    ),
    Mutation(
        "auto: when QAT is tried",
        "compress/automatic_method.py",
        "WORTH_QAT = 0.5",
        "WORTH_QAT = 1.0",
        "compress/test_automatic_method.py::test_auto_tries_qat_if_ptq_loses_much_and_chooses_the_better",
    ),
    Mutation(
        "auto: choice of the smaller loss",
        "compress/automatic_method.py",
        "int8 = sorted((name for name in AUTO_METHODS if name in sources), key=loss)",
        "int8 = [name for name in AUTO_METHODS if name in sources]",
        "compress/test_automatic_method.py::test_auto_tries_qat_if_ptq_loses_much_and_chooses_the_better",
    ),
    # camera
    Mutation(
        "ring buffer: maximum size of the saved images",
        "camera/sinks/image_recorder.py",
        "self._total_bytes + size > config.max_bytes or self._free()",
        "self._free()",
        "camera/test_file_sinks.py::test_recorder_deletes_the_oldest_of_its_own_images",
    ),
    Mutation(
        "ring buffer: images that a person moved",
        "camera/sinks/image_recorder.py",
        "own = name is not None and name[1] == _digest(path.parent)",
        "own = name is not None",
        "camera/test_recordings.py::test_images_that_were_moved_are_never_deleted_and_count_toward_the_limit",
    ),
    Mutation(
        "queue of a sink: limit in bytes",
        "camera/sinks/sink_thread.py",
        "len(self._entries) < MAX_EVENTS and self._bytes + entry.size_bytes <= MAX_BYTES",
        "len(self._entries) < MAX_EVENTS",
        "camera/test_sink_worker.py::test_queue_is_limited_in_bytes_and_in_length",
    ),
    Mutation(
        "queue of a sink: frames of a file are not dropped",
        "camera/sinks/sink_thread.py",
        "wait = self._lossless if wait is None else wait",
        "wait = False",
        "camera/test_sink_worker.py::test_slow_sink_receives_every_frame_of_a_file",
    ),
    Mutation(
        "queue of a sink: images that the sink does not use",
        "camera/sinks/sink_thread.py",
        "event = event.without_image",
        "pass",
        "camera/test_sink_worker.py::test_queue_of_a_sink_without_images_holds_no_images",
    ),
    Mutation(
        "lost results: exit code",
        "camera/sinks/sink_thread.py",
        "            self._incomplete = True\n",
        "            pass\n",
        "camera/test_sink_worker.py::test_failures_of_a_sink_make_the_report_incomplete",
    ),
    Mutation(
        "decision: reset after an outage",
        "camera/pipeline.py",
        "self._deciders[name].reset()",
        "pass",
        "camera/test_silent_sources.py::test_first_frame_after_an_outage_starts_a_new_decision",
    ),
    Mutation(
        "supervisor: wait for hung connections",
        "camera/supervisor.py",
        "self._wait(lambda: len(self._hung) < MAX_HUNG, self._give_up_in_s(connection))",
        "self._wait(lambda: len(self._hung) < MAX_HUNG, math.inf)",
        "camera/test_silent_sources.py::test_give_up_ends_a_source_whose_connections_all_hang",
    ),
    Mutation(
        "MJPEG: pixels per byte",
        "camera/sources/jpeg.py",
        "self._scans <= _MAX_SCANS and self._pixels <= _MAX_PIXELS_PER_BYTE * self._at",
        "self._scans <= _MAX_SCANS",
        "camera/test_hostile_mjpeg.py::test_a_file_with_too_few_bytes_for_its_pixels_is_dropped",
    ),
    Mutation(
        "MJPEG: number of scans",
        "camera/sources/jpeg.py",
        "self._scans <= _MAX_SCANS and self._pixels",
        "self._pixels",
        "camera/test_hostile_mjpeg.py::test_a_file_with_too_many_scans_is_dropped",
    ),
    Mutation(
        "web page: Origin of requests that write",
        "http/auth.py",
        'elif is_cross_site or ("origin" in headers and _netloc(headers["origin"]) != host.lower()):',
        "elif is_cross_site:",
        "camera/test_web.py::test_request_of_another_site_cannot_save",
    ),
    Mutation(
        "web page: lockout after wrong tokens",
        "http/auth.py",
        "attempts = [bool(query), bool(kind), bool(cookie)].count(True)",
        "attempts = int(bool(query))",
        "test_secrets.py::test_every_form_of_a_wrong_token_counts_toward_the_lockout",
    ),
    Mutation(
        "web page: quota of the saved images",
        "camera/sinks/web/label_store.py",
        "            self._check_quota(len(png))\n",
        "            pass\n",
        "camera/test_web_limits.py::test_saved_images_have_a_quota_that_counts_earlier_files",
    ),
    Mutation(
        "HTTP camera: credentials after a redirect",
        "camera/sources/http.py",
        "not credentials and current_url.origin == url.origin",
        "not credentials",
        "test_secrets.py::test_password_does_not_follow_a_redirect_to_another_port",
    ),
    Mutation(
        "topics: names of sources that differ in punctuation",
        "camera/sinks/events.py",
        "        return _with_digest(name, source)\n    return name",
        "        return name\n    return name",
        "camera/test_mqtt_faults.py::test_sources_that_differ_in_punctuation_have_their_own_topics_ids_and_metrics",
    ),
    # contract
    Mutation(
        "zip files: number of files",
        "utils/bounded_parsing.py",
        "MAX_ZIP_ENTRIES = 10_000",
        "MAX_ZIP_ENTRIES = 1 << 40",
        "contract/test_limits.py::test_zip_with_very_many_files_is_refused",
    ),
    Mutation(
        "zip files: unpacked size",
        "utils/bounded_parsing.py",
        "MAX_COMPRESSION_RATIO = 50",
        "MAX_COMPRESSION_RATIO = 1 << 40",
        "contract/test_limits.py::test_zip_that_unpacks_to_far_more_than_its_size_is_refused",
    ),
    Mutation(
        "images: number of pixels",
        "contract/image_decoding.py",
        "    return width * height > MAX_PIXELS",
        "    return False",
        "contract/test_limits.py::test_image_with_too_many_pixels_is_refused",
    ),
    Mutation(
        "locks of folders",
        "utils/lock.py",
        "(fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        "utils/test_lock.py::test_second_training_in_the_same_folder_is_refused_until_the_first_is_killed",
    ),
    Mutation(
        "graph of a model: output that is never computed",
        "tflite/graph_check.py",
        "            if index not in known:\n",
        "            if False:\n",
        "tflite/test_hostile_tflite.py::test_an_invalid_graph_is_refused_before_a_runtime_reads_it",
    ),
    Mutation(
        "addresses: parameters that may be secrets",
        "utils/url_redaction.py",
        "if _PUBLIC_PARAMETERS.fullmatch(name) and _PUBLIC_VALUE.fullmatch(value):",
        "if _PUBLIC_VALUE.fullmatch(value):",
        "test_secrets.py::test_name_of_a_source_has_no_secret",
    ),
    Mutation(
        "CSV: text that a spreadsheet would evaluate",
        "utils/text.py",
        'printable(f"\'{text}" if formula else text)',
        "printable(text)",
        "cli/test_untrusted_text.py::test_spreadsheet_does_not_evaluate_a_label",
    ),
    Mutation(
        "temperature without an error",
        "contract/decision.py",
        "return max(temperature, 1.0) if np.array_equal(scores.argmax(axis=1), classes) else temperature",
        "return temperature",
        "contract/test_decision.py::test_temperature_is_at_least_1_if_all_predictions_are_correct",
    ),
    # runtime and export
    Mutation(
        "verify: label on another runtime",
        "runtime/verification.py",
        "if 2 * report.same_labels <= report.images:",
        "if False:",
        "runtime/test_verify_delegate.py::test_flat_scores_do_not_hide_a_model_with_other_labels",
    ),
    Mutation(
        "verify: label with a clear margin",
        "runtime/verification.py",
        "if result.deficit > result.tolerance:",
        "if False:",
        "contract/test_bundle.py::test_verify_refuses_another_label_even_within_the_tolerance",
    ),
    # signatures
    Mutation(
        "signature: key that is not allowed",
        "contract/signature.py",
        "        raise check.refusal()\n",
        '        return Signer("", "", "", serial, signed_s)\n',
        "contract/test_signature.py::test_key_that_is_not_allowed_is_refused_with_its_fingerprint",
    ),
    Mutation(
        "signature: not checked",
        "contract/bundle.py",
        "        if allowed_signers is not None:\n            signer = ",
        "        if False:\n            signer = ",
        "contract/test_signature.py::test_unsigned_bundle_is_refused",
    ),
    Mutation(
        "signature: second serial number",
        "contract/bundle.py",
        "if signer and (manifest.serial, manifest.signed_s) != ",
        "if False and (manifest.serial, manifest.signed_s) != ",
        "contract/test_signature.py::test_manifest_with_a_second_serial_number_is_refused",
    ),
    Mutation(
        "signature: revoked key",
        "contract/signature.py",
        'options = ["-r", self._files["revoked_keys"]] if revoked else []',
        "options = []",
        "contract/test_signature.py::test_revoked_key_is_refused",
    ),
    Mutation(
        "signature: downgrade",
        "contract/signature.py",
        "if serial < highest_serial:",
        "if False:",
        "contract/test_signature.py::test_older_release_is_refused",
    ),
    # serving
    Mutation(
        "server: size of a chunked body",
        "serving/request_body.py",
        "if self.size > maximum:",
        "if self.size > 1 << 40:",
        "serving/test_serve.py::test_large_body_is_refused_and_the_client_sees_the_response",
    ),
    Mutation(
        "server: number of pixels",
        "serving/pool.py",
        "if width * height > MAX_PIXELS:",
        "if width > MAX_PIXELS:",
        "serving/test_serve.py::test_bad_request_gets_a_status_and_an_error",
    ),
    Mutation(
        "server: response to invalid HTTP",
        "http/server.py",
        "def send_400_response(",
        "def send_no_response(",
        "serving/test_serve.py::test_invalid_http_gets_a_json_error",
    ),
    # deploy
    Mutation(
        "deploy: types of the status",
        "deploy/session.py",
        'reply = check_reply(self.label, self.request("status"), StatusReply)',
        'reply = self.request("status")',
        "deploy/test_malicious_devices.py::test_status_without_a_key_is_refused",
    ),
    Mutation(
        "deploy: number of steps",
        "deploy/release.py",
        "if lines > max_lines:",
        "if lines > 100 * max_lines:",
        "deploy/test_malicious_devices.py::test_job_with_too_many_steps_is_refused",
    ),
    Mutation(
        "deploy: size of the probe's output",
        "deploy/ssh.py",
        "size += len(line)",
        "size = len(line)",
        "deploy/test_malicious_devices.py::test_probe_with_too_much_output_is_refused",
    ),
    Mutation(
        "deploy: number of received bytes",
        "deploy/transfer.py",
        "received_bytes < number <=",
        "0 < number <=",
        "deploy/test_transfer.py::test_number_of_received_bytes_must_be_possible_and_increase",
    ),
    Mutation(
        "deploy: types in devices.toml",
        "utils/type_descriptions.py",
        "if get_origin(hint) in (Union, UnionType) else",
        "if False else",
        "deploy/test_devices_file.py::test_invalid_file_is_refused_and_the_device_is_named",
    ),
)


def copy_repository(folder: Path) -> Path:
    """Copy the package, its tests and its data, without build outputs and downloads; return the copy's path."""
    shutil.copytree(REPOSITORY, folder, ignore=IGNORED_FILES)
    return folder


def run_tests(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Run tests in a copy of the repository, and return the exit code and output of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / ".tmp")]
    data = os.environ.get("EDGEREC_TEST_DATA") or str(REPOSITORY.parent / "shared" / "data")
    environment = os.environ | {"PYTHONPATH": str(folder), "EDGEREC_TEST_DATA": data, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        result = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S * (1 + len(tests) // 10),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, f"timed out after {TIMEOUT_S} s"
    return result.returncode, result.stdout


def check_table(mutations: tuple[Mutation, ...]) -> None:
    """Exit with an error if the text of a mutation does not occur exactly once in its file, or a test is missing."""
    for mutation in mutations:
        source = REPOSITORY / "edgerec" / mutation.file
        count = source.read_text(encoding="utf-8").count(mutation.old)
        if count != 1:
            sys.exit(
                f"error: {mutation.function}: {source} contains the text to replace {count} times, expected once: "
                f"{mutation.old!r}; update the table in {Path(__file__).name}"
            )
        name, _, function = mutation.test.partition("::")
        tests = (REPOSITORY / "tests" / name).read_text(encoding="utf-8")
        if not re.search(rf"^def {re.escape(function.partition('[')[0])}\(", tests, re.MULTILINE):
            sys.exit(f"error: {mutation.function}: there is no test {mutation.test}")


def check_copy(folder: Path) -> None:
    """Exit with an error if tests in the copy would import edgerec from another location."""
    command = [sys.executable, "-c", "import edgerec; print(edgerec.__file__)"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    if not Path(result.stdout.strip()).is_relative_to(folder):
        sys.exit(f"error: the copy in {folder} is not used: Python imports {result.stdout.strip()}")


def outcome_of(mutation: Mutation, folder: Path) -> tuple[str, str]:
    """Apply a mutation to a copy and run its test; return the outcome and the reason why the test failed."""
    source = folder / "edgerec" / mutation.file
    original = source.read_text(encoding="utf-8")
    source.write_text(original.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, output = run_tests(folder, [mutation.test])
    finally:
        source.write_text(original, encoding="utf-8")
    reasons = [line for line in output.splitlines() if line.startswith("E  ")] or output.strip().splitlines()[-1:]
    reason = reasons[0].removeprefix("E").strip() if reasons else ""
    if code == PASSED:
        return "survived", ""
    return ("killed" if code == FAILED else f"invalid (pytest exit code {code})"), reason


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        default="",
        help="Run mutations whose function, file or test contains one of these texts, separated by commas.",
    )
    parser.add_argument("--jobs", type=int, default=1, help="Number of tests to run in parallel. [default: 1]")
    parser.add_argument("--skip-unmutated", action="store_true", help="Skip the initial run without mutations.")
    arguments = parser.parse_args()
    check_table(MUTATIONS)
    chosen = tuple(
        m for m in MUTATIONS if any(text in f"{m.function} {m.file} {m.test}" for text in arguments.only.split(","))
    )
    if not chosen:
        sys.exit(f"error: no mutation contains {arguments.only!r}")
    with tempfile.TemporaryDirectory(prefix="edgerec-mutations-") as scratch:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.jobs):
            copies.put(copy_repository(Path(scratch).resolve() / f"copy{number}"))
        check_copy(Path(scratch).resolve() / "copy0")
        if not arguments.skip_unmutated:
            code, output = run_tests(Path(scratch).resolve() / "copy0", sorted({m.test for m in chosen}))
            if code != PASSED:
                sys.exit(f"error: the tests do not pass without mutations:\n{output[-3000:]}")
        failures, lock = 0, threading.Lock()

        def work(mutation: Mutation) -> None:
            nonlocal failures
            folder, start = copies.get(), time.monotonic()
            try:
                outcome, reason = outcome_of(mutation, folder)
            finally:
                copies.put(folder)
            with lock:
                failures += outcome != "killed"
                print(f"{outcome:8}  {mutation.function}  [{mutation.file}]  {time.monotonic() - start:.0f} s")
                print(f"          tests/{mutation.test}")
                if reason:
                    print(f"          {reason[:140]}", flush=True)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(work, chosen))
    print(f"{len(chosen) - failures} of {len(chosen)} mutations killed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
