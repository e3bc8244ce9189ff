"""The words for every failure: code → title, explanation, remedy. Nothing else in the program explains a failure.

Where a failure happens only its code and one sentence with the particulars are known (`gpu.errors.Fault`); page, API and terminal take the
general words from here, so they agree.
"""

from __future__ import annotations

from dataclasses import dataclass

OWNER, OPERATOR, US = "owner", "operator", "us"


@dataclass(frozen=True)
class Explanation:
    """What a person is told about a failure.

    Args:
        remedy: what to do now; "" where nothing needs doing.
        whose: who can mend it: `owner` of the data or the run, `operator` of the machine, or `us`, the program.
        detail: the particulars, as the failure itself said them.
    """

    title: str
    explanation: str
    remedy: str
    whose: str = OWNER
    code: str = ""
    detail: str = ""


def explain(code: str, detail: str = "") -> Explanation:
    """The words for a code; an unknown one is our own fault, and said to be."""
    title, explanation, remedy, whose = WORDS.get(code, WORDS["internal"])
    return Explanation(title=title, explanation=explanation, remedy=remedy, whose=whose, code=code, detail=detail)


WORDS: dict[str, tuple[str, str, str, str]] = {
    # The program itself
    "internal": ("The program met an error of its own", "This is not your doing. What was saved before is safe.", "Try again; if it happens again, report it with the end of the log.", US),
    "config.invalid": ("A parameter is wrong", "At least one value is outside its limits, or two do not go together.", "Change the values that are named.", OWNER),
    "config.unreadable": ("The job's configuration cannot be read", "Its config.json is missing or damaged.", "Make a new run with the same options (Clone with changes).", OPERATOR),
    "config.audio_conditioning": ("This model cannot hear", "Sounds can stand in for their captions only where both have one CLAP embedding, and where the model has CLAP's audio half.", "Set audio conditioning to 0, or start from an AudioLDM 1 model that was imported with its audio encoder.", OWNER),
    "config.precision_needs_gpu": ("This precision needs a GPU", "bf16 and fp16 are for GPUs; on a processor they are slower than full precision or do not exist.", "Choose precision “auto” or “no”, or run on a machine with a GPU.", OWNER),
    "lookup.not_found": ("There is nothing of that name", "No row has this name or id.", "Use one of the names that are listed.", OWNER),
    "lookup.ambiguous": ("The name stands for several", "More than one row has this name.", "Use the id instead.", OWNER),
    "file.exists": ("It exists already", "Nothing is ever overwritten.", "Name a path that does not exist yet.", OWNER),
    "file.unusable": ("A file or folder cannot be used", "It is not what the command needs, or the system does not let us use it.", "Look at the path that is named and at its permissions.", OWNER),
    # The API and accounts
    "api.not_logged_in": ("Who are you?", "The request carries neither a valid session nor a token.", "Send `Authorization: Bearer …` with a token from your account's page.", OWNER),
    "api.token_refused": ("The token opens nothing", "It is unknown, expired or revoked, or its account is closed.", "Make a new one on your account's page.", OWNER),
    "api.read_only": ("This token may only look", "Its scope is read, and the request would change something.", "Use a token that may change things.", OWNER),
    "api.csrf": ("The page's token is missing", "A browser's session changes something only with the CSRF token of one of our pages.", "Send the cookie's token as X-CSRFToken, or use an API token.", OWNER),
    "api.not_yours": ("It belongs to somebody else", "It is shared with you to look at; only its owner, or staff, may change it.", "Ask its owner, or make a copy of your own.", OWNER),
    "api.not_found": ("There is nothing at this address", "No such thing exists, or it belongs to somebody who does not share it.", "Look at the id, or ask for the list.", OWNER),
    "api.method": ("This is not done that way", "The address exists, and does not know this method.", "Use one of those in the Allow header.", OWNER),
    "api.unreadable": ("The request cannot be read", "It is not what the address expects.", "Compare it with the documentation.", OWNER),
    "api.conflict": ("It is not in a state for this", "What was asked for can only be done in another state.", "Look at its status first.", OWNER),
    "api.too_large": ("The request is too large", "It has more bytes than are taken here.", "Put the file into DATA_DIR/incoming and scan, or send less.", OWNER),
    "api.too_many": ("Too many requests", "More came within a minute than one may send.", "Wait as long as Retry-After says.", OWNER),
    "token.invalid": ("The token cannot be made like this", "Its name, scope or time is out of bounds.", "Change the value that is named.", OWNER),
    "share.of_nobody": ("It needs no sharing", "What belongs to nobody is seen by everybody.", "", OWNER),
    # Uploads
    "upload.version": ("The client speaks another version", "Uploads are taken by the tus protocol, version 1.0.0.", "Send `Tus-Resumable: 1.0.0`.", OWNER),
    "upload.invalid": ("The upload cannot begin like this", "What is said about the file, or a header of the request, cannot be read.", "Compare it with docs/uploads.md.", OWNER),
    "upload.content_type": ("The bytes are not marked as such", "Pieces of an upload are of the type application/offset+octet-stream.", "Send that Content-Type.", OWNER),
    "upload.too_large": ("The file is too large", "It has more bytes than one file may have here.", "Put it into DATA_DIR/incoming and scan, or ask whoever runs the machine to raise UPLOAD_MAX_GB.", OWNER),
    "upload.quota": ("You have too much on its way", "Your unfinished uploads take room whether they go on or not.", "Finish or remove one of them.", OWNER),
    "upload.too_long": ("More bytes came than were announced", "An upload has the length that was said at its beginning.", "Remove it and begin anew: the file has changed meanwhile.", OWNER),
    "upload.offset": ("It goes on at another place", "Another number of bytes has arrived than the request believes.", "Ask for the offset (HEAD) and go on from there.", OWNER),
    "upload.locked": ("It is being sent already", "Two requests cannot add to one upload at a time.", "Wait a moment, or close the other page.", OWNER),
    "upload.gone": ("The upload is gone", "It has ended, was removed, or waited too long for its next bytes.", "Begin it anew.", OWNER),
    "upload.checksum": ("The bytes changed on the way", "They do not hash to what was announced. Nothing of this piece was kept.", "Send the piece again.", OWNER),
    # The machine
    "disk.full": ("The disk is full", "There is too little free space to write what comes next. Nothing that was complete has been lost.", "Free some space (old checkpoints, generations, the cache) or enlarge the volume, then press Resume.", OPERATOR),
    "preflight.refused": ("It would not fit here", "The run needs more memory or disk than there is, or something that this machine or this model cannot do.", "Take the smaller options that are named, or free what is missing. Where only the size is the trouble, an estimate can be overruled: tick the box below it (in the terminal: --force).", OWNER),
    "memory.exhausted": ("Out of memory", "The model, its gradients and the batch did not fit into memory.", "Choose a smaller batch with more accumulation, LoRA instead of full, gradient checkpointing, or shorter sounds; then try again.", OWNER),
    "process.died": ("The process ended without a word", "It was killed from outside or crashed. Signal 9 often means that the system ran out of memory.", "Press Resume: it goes on from the last checkpoint. If it dies again, try a smaller batch and read the log's end.", OPERATOR),
    "events.damaged": ("The job's events file is damaged", "A line of events.jsonl is not what the job wrote there.", "Press Resume: what was recorded is written anew, and it goes on from the last checkpoint. If it comes back, have the disk checked.", OPERATOR),
    "worker.lost": ("The worker was lost again and again", "The job was started several times and its worker disappeared each time before it got any further.", "Look at the machine's memory and its log, then press Resume.", OPERATOR),
    "cache.damaged": ("A cached file is damaged", "A file under DATA_DIR/cache could not be used and could not be made again.", "Delete DATA_DIR/cache (it is made anew) and press Resume.", OPERATOR),
    "worker.missing": ("Nobody works on a queue", "What waits in it stays there until a worker comes.", "Start the studio (`make run`, or `manage.py serve`); where it runs, look at its log.", OPERATOR),
    "disk.low": ("The disk is almost full", "There is less room than one checkpoint with its full state may need.", "Free some space (old checkpoints, generations, the cache), or enlarge the volume.", OPERATOR),
    "data.not_writable": ("DATA_DIR cannot be written to", "The user that runs the studio may not write there.", "Give the folder to that user, or set DATA_DIR to another one.", OPERATOR),
    "data.not_a_volume": ("DATA_DIR goes with the container", "It lies on the container's own disk, which is deleted with it.", "Mount a volume at DATA_DIR.", OPERATOR),
    "database.unusable": ("The database does not answer", "It is away, refuses the login, or has no tables yet.", "Run `manage.py migrate`, and look at DATABASE_URL.", OPERATOR),
    "database.migrations": ("The database is older than the program", "Tables or columns that the program needs are not there yet.", "Run `manage.py migrate`.", OPERATOR),
    "packages.missing": ("Packages are missing", "The program was not installed whole.", "Run `make setup`.", OPERATOR),
    # Keeping
    "backup.target": ("The backup cannot be written there", "It becomes a new file that ends in .tar or .tar.gz.", "Choose another path.", OPERATOR),
    "backup.damaged": ("The backup is not whole", "It is cut short, changed, or was never one. Nothing of it was brought into the studio.", "Use another copy of it.", OPERATOR),
    "backup.database": ("The database could not be copied", "Its own program for that ended with an error.", "Look at what it said; the versions of server and program must fit.", OPERATOR),
    "restore.not_empty": ("Something is there already", "A backup is never written over anything.", "Set DATA_DIR to a new folder (and DATABASE_URL to an empty database).", OPERATOR),
    "restore.other_database": ("The backup is of another kind of database", "One of SQLite goes into SQLite, one of PostgreSQL into PostgreSQL.", "Set or unset DATABASE_URL accordingly.", OPERATOR),
    "storage.missing": ("A file is gone", "A row says that it is there.", "Put it back from a backup; runs and sounds that exist keep their history.", OPERATOR),
    "storage.changed": ("A file was changed", "It is not what was recorded when it was made.", "Put the original back from a backup, and look after the disk.", OPERATOR),
    "storage.found": ("A file is there again", "It was recorded as missing.", "Run check_storage with --fix, or press Scan.", OPERATOR),
    "storage.unknown": ("No row knows these files", "They take room and nothing uses them; they may be somebody's only copy.", "Look at them; move them to incoming/ and scan, or delete them.", OPERATOR),
    "storage.abandoned": ("Half-written files were left behind", "Whoever wrote them was killed.", "Run check_storage with --fix, or prune with --yes.", OPERATOR),
    # Runs
    "training.diverged": ("The training diverged", "The loss became infinite or not a number several times in a row; the weights of that moment are not saved.", "Clone the run with a lower learning rate or a longer warm-up, or resume from the last checkpoint.", OWNER),
    "manifest.unreadable": ("The list of clips cannot be read", "The run's manifest.jsonl is missing or damaged.", "Make a new run with the same options (Clone with changes).", OPERATOR),
    "manifest.changed": ("The list of clips was changed", "The run's manifest.jsonl is not the one that was frozen when the run was made.", "Put the original back, or make a new run (Clone with changes).", OPERATOR),
    "run.active": ("It has not ended yet", "This can only be done when the job has ended.", "Stop it first, or wait for its end.", OWNER),
    "run.ended": ("It has ended already", "There is nothing left to stop.", "", OWNER),
    "run.taken": ("Somebody else has it", "A worker took the job at the same moment.", "Watch it in the page or with list_runs.", OWNER),
    "run.stopped": ("It was stopped", "The job was stopped before it had finished.", "Start it again when you like.", OWNER),
    "run.no_resume_state": ("It cannot be continued", "Continuing needs a checkpoint with the full training state, and none is left.", "Start a new run from its last checkpoint: the weights are the same, the optimizer starts anew.", OWNER),
    "pretrain.vocoder_missing": ("The vocoder's package is not installed", "This recipe takes its vocoder from a Python package.", "Install the package that is named, and run the recipe again.", OPERATOR),
    "pretrain.recipe_invalid": ("The recipe cannot be followed", "It lacks a value, has one too many, or one that is out of its range.", "Mend the recipe as the message says, and start a new run.", OWNER),
    "pretrain.data_unusable": ("The recordings cannot be used", "Pretraining reads zips of recordings, and of each a registry in CSV.", "Mend the file that is named (docs/pretraining.md says what it holds), then resume or start anew.", OWNER),
    "run.pretraining": ("This is a pretraining", "It starts from a recipe, not from a dataset and a checkpoint.", "Start another from the terminal: manage.py pretrain.", OWNER),
    # Evaluation and listening
    "evaluation.nothing_held_out": ("Nothing is held out", "Distances and prompts need real sounds that the checkpoint was not trained on; the dataset has fewer than two.", "Hold clips out in the dataset's split before training, or evaluate on another dataset.", OWNER),
    "evaluation.cannot_hear": ("This model cannot hear", "Its CLAP has no audio half, so it cannot judge sounds.", "Choose the ears of another checkpoint, or name one with --clap.", OWNER),
    "evaluation.ears_broken": ("The CLAP cannot be used", "Its files cannot be read, or it answers with values that are no numbers.", "Choose the ears of another checkpoint, or name one with --clap.", OWNER),
    "evaluation.same_checkpoint": ("Both are the same checkpoint", "A comparison needs two.", "Choose another one, or none.", OWNER),
    "evaluation.report_unreadable": ("The report cannot be read", "Its report.json is missing or damaged.", "Make the evaluation again; the sounds that are there are not made again.", OPERATOR),
    "listening.invalid": ("There is no such answer", "The pair or the choice does not exist in this test.", "Reload the page and answer there.", OWNER),
    "listening.not_ready": ("The sounds are not ready", "They are still being made, or their making has failed.", "Wait for them, or look at the test's page.", OWNER),
    # Checkpoints
    "checkpoint.unrecognised": ("This is no model that we know", "A model is a checkpoint file of AudioLDM or AudioLDM 2 (.ckpt, .pth, .safetensors), or a folder in diffusers' layout with model_index.json and its parts as safetensors.", "Choose such a file, or the folder that holds model_index.json.", OWNER),
    "checkpoint.unsupported": ("This model cannot be used here", "It is kept, and can be written out again, but text alone does not drive it.", "Choose another model.", OWNER),
    "checkpoint.none": ("There is no model yet", "Nothing can be generated or fine-tuned without one.", "Run `manage.py migrate` for the built-in starter, or `manage.py import_checkpoint PATH`.", OPERATOR),
    "checkpoint.incomplete": ("The model is not whole", "A part of it, or of its weights, is missing or cut short.", "Copy or download it again.", OWNER),
    "checkpoint.pickled": ("The weights are pickled", "Pickle files can run any program when they are opened, so we never open them.", "Save the model as safetensors (save_pretrained does so by default).", OWNER),
    "checkpoint.link": ("This is a link", "Links are not followed: what they lead to can change or lie anywhere.", "Move or copy the model itself.", OWNER),
    "checkpoint.known": ("This model is there already", "A registered checkpoint has the same content, so nothing was done.", "Use that one, and delete the copy.", OWNER),
    "checkpoint.missing": ("The checkpoint's files are gone", "They were moved or deleted since it was registered.", "Put them back and scan, or choose another checkpoint.", OWNER),
    "checkpoint.changed": ("The model was changed", "Its files differ from those that the job was made for, so the result would not be what it says.", "Put the original files back, or register the changed model as a new one.", OWNER),
    "checkpoint.corrupt": ("The checkpoint is damaged", "Its content does not agree with its own hash.", "Use an earlier checkpoint; look after the disk.", OPERATOR),
    "checkpoint.mismatch": ("The checkpoint does not fit", "It was trained on another model, or in another way, than this job needs.", "Choose a checkpoint of the same base, method and rank.", OWNER),
    "checkpoint.no_resume_state": ("It holds weights only", "Without the full training state a run cannot go on; a new one can start from it.", "Start a new run from it.", OWNER),
    "checkpoint.not_whole": ("It is only a part of a model", "A LoRA or a lone UNet changes a whole model and is nothing without it.", "Import the model that it was trained on, and train or export from there.", OWNER),
    "checkpoint.malformed": ("The file contradicts itself", "Sizes or places inside it cannot be true, as in a damaged or a tampered file. Nothing of it was used.", "Get the file again from where it comes from.", OWNER),
    "checkpoint.compressed": ("Its values are packed", "A checkpoint's values are read where they lie, so they must not be compressed or encrypted.", "Save it again with torch.save, or unpack the archive and import the file inside.", OWNER),
    "checkpoint.not_finite": ("The weights are no numbers", "Some of the model's weights are infinite or not a number, as after a training that diverged.", "Import its other copy of the weights (EMA or raw), or an earlier checkpoint.", OWNER),
    "generation.not_finite": ("The model made no sound", "It answered with infinities or values that are no numbers: its weights are damaged, its training diverged, or the guidance is far too strong. Such sounds are not kept; the others are.", "Try a guidance of 2 to 5 and another checkpoint; for a model from elsewhere, bring it in again, which looks for such weights.", OWNER),
    "checkpoint.heads": ("It cannot become an original checkpoint", "The original code counts its attention heads in another way than this model was trained with, so the same weights would be another function there.", "Export it as a diffusers folder or as safetensors.", OWNER),
    "checkpoint.no_original": ("The original's other tensors are missing", "The original code loads a file only when every tensor is there, also those that this studio does not use.", "Import the original file again without “slim”, and train from that; or export as a diffusers folder.", OWNER),
    "export.impossible": ("This form is not possible", "The model cannot be written in the form that was asked for.", "Choose another form.", OWNER),
    "tokenizers.missing": ("The vocabularies are missing", "A checkpoint in the original layout does not carry its tokenizers, and none that fits is at hand.", "Put them where the message says, or let this machine reach the hub once.", OPERATOR),
    "hub.unknown": ("The hub has no such model", "Its name, its revision, or the permission to read it is wrong.", "Check the name (OWNER/NAME) on the hub's own page.", OWNER),
    "hub.unreachable": ("The hub cannot be reached", "This machine has no way to it, or it does not answer.", "Download the model on another machine and import the folder or file.", OPERATOR),
    "checkpoint.retired": ("The checkpoint is retired", "Somebody took it out of use.", "Choose another, or bring it back in the admin.", OWNER),
    "checkpoint.base_missing": ("The model below it is missing", "A LoRA, a UNet alone and a run's checkpoint lie on a whole model, which has to be registered.", "Bring in that model first, then say that it lies on it.", OWNER),
    "checkpoint.no_ema": ("There is no moving average in it", "The file holds one copy of the weights alone.", "Take the raw weights.", OWNER),
    "checkpoint.not_trainable": ("It cannot be fine-tuned", "This kind of model can be kept and written out here, but not trained.", "Choose another checkpoint.", OWNER),
    "checkpoint.not_playable": ("It cannot make sounds here", "This kind of model can be kept and written out here, but not heard.", "Choose another checkpoint.", OWNER),
    "checkpoint.not_exportable": ("It cannot be written in that form", "That form cannot hold this checkpoint, or needs what was not kept.", "Choose another form; its reason stands beside each.", OWNER),
    # Datasets as a whole
    "dataset.not_a_zip": ("This is not a zip file", "A dataset comes as a .zip with metadata.csv and WAV files (or as a folder, in the terminal).", "Zip the folder that holds metadata.csv, and bring that file.", OWNER),
    "dataset.empty": ("The archive is empty", "There is no file in it.", "Zip the folder that holds metadata.csv, and bring that file.", OWNER),
    "dataset.no_metadata": ("metadata.csv is missing", "It must lie at the top of the zip, or in the one folder that encloses everything.", "Add a metadata.csv with the columns audio and caption.", OWNER),
    "dataset.columns_missing": ("A column is missing", "metadata.csv needs the columns audio and caption in its first line.", "Add the column that is named.", OWNER),
    "dataset.no_rows": ("metadata.csv has no rows", "There is a header and nothing below it.", "Add one line for each sound.", OWNER),
    "dataset.no_usable_clips": ("No clip can be used", "Every clip is missing, damaged, excluded or without a caption.", "Look at the list of problems, mend the files or captions, and try again.", OWNER),
    "dataset.not_ready": ("The dataset is not ready", "It is still being imported, or was refused.", "Wait for the import, or look at its page.", OWNER),
    "dataset.import_failed": ("The import failed", "The program met an error of its own while it read the dataset.", "Try again; if it happens again, report it with the log.", US),
    "dataset.interrupted": ("The import was interrupted", "It died before it was complete; nothing of it was kept.", "Bring the file again.", OPERATOR),
    "dataset.in_use": ("The dataset is in use", "A run that waits or works needs it.", "Stop that run first, or wait for its end.", OWNER),
    "dataset.invalid": ("A value is wrong", "The dataset cannot be saved like this.", "Change the value that is named.", OWNER),
    "dataset.name_taken": ("The name is taken", "Another dataset is called so.", "Choose another name.", OWNER),
    "dataset.unlisted": ("Files that no line names", "Sounds in the archive that metadata.csv does not list are not used.", "Add a line for each if you want them.", OWNER),
    "split.seed": ("The split's seed is wrong", "It must be a whole number, zero or more.", "Change the seed.", OWNER),
    "split.share": ("The held-out share is wrong", "It must lie between none and less than all.", "Change the share.", OWNER),
    "split.unknown": ("There is no such split", "A clip is for training or for validation.", "Choose one of the two.", OWNER),
    # The archive
    "archive.truncated": ("The zip is cut short or damaged", "Its directory or one of its files cannot be read, as after an interrupted copy.", "Copy or upload it again.", OWNER),
    "archive.path_unsafe": ("A path leads outside", "The archive holds a path that would be written outside the dataset's folder. Nothing of it was unpacked.", "Make the zip anew with relative paths below its own folder.", OWNER),
    "archive.link": ("The archive holds a link", "Links are never followed or unpacked.", "Put the file itself into the zip.", OWNER),
    "archive.too_large": ("The archive is too large", "Unpacked it would exceed the limit that is named.", "Split the dataset, or have the operator raise the limit.", OWNER),
    "archive.too_many_files": ("Too many files", "The archive holds more entries than the limit that is named.", "Split the dataset.", OWNER),
    "archive.ratio": ("The archive is packed suspiciously tight", "Sound does not shrink so much: this looks like a zip bomb.", "Make the zip anew from the sounds themselves.", OWNER),
    "archive.compression": ("A way of packing that we do not read", "Only stored and deflated entries are read.", "Make the zip anew with ordinary settings.", OWNER),
    "archive.encrypted": ("The archive is encrypted", "We cannot open files with a password.", "Make the zip without a password.", OWNER),
    "archive.duplicate_name": ("Two entries have the same name", "It is unclear which one is meant.", "Make the zip anew so that each name occurs once.", OWNER),
    "archive.overlapping": ("Entries overlap", "Two entries claim the same bytes, which no ordinary zip does.", "Make the zip anew.", OWNER),
    # Lines of metadata.csv
    "metadata.encoding": ("The text is not UTF-8", "metadata.csv was read with another encoding, which may have got letters wrong.", "Look at the captions; save the file as UTF-8.", OWNER),
    "metadata.synonym": ("A column was recognised by another name", "It was taken for audio or caption.", "", OWNER),
    "row.short": ("A line is too short", "It has fewer fields than the header.", "Complete the line.", OWNER),
    "row.long": ("A line is too long", "It has more fields than the header; perhaps a caption with a comma needs quotes.", "Put the caption into quotes.", OWNER),
    "row.no_audio": ("A line names no sound", "Its audio column is empty.", "Name the file, or remove the line.", OWNER),
    "row.quote_open": ("A quote is never closed", "Everything after it would belong to one caption.", "Close the quote.", OWNER),
    "row.unreadable": ("A line cannot be read", "It is not valid CSV.", "Mend the line.", OWNER),
    "problems.more": ("More was found", "The list is cut off here.", "Mend what is listed and import again.", OWNER),
    # Clips
    "clip.missing": ("A listed file is missing", "metadata.csv names it, the archive does not hold it.", "Add the file or correct its path; the other clips can be used.", OWNER),
    "clip.empty": ("A file is empty", "It holds no sound.", "Replace it; the other clips can be used.", OWNER),
    "clip.corrupt": ("A file is damaged", "It begins like a WAV and cannot be read to its end.", "Replace it; the other clips can be used.", OWNER),
    "clip.not_audio": ("A file is not a WAV", "Its content is something else, whatever its name.", "Convert it to WAV; the other clips can be used.", OWNER),
    "clip.unreadable": ("A sound cannot be read", "The file is damaged or of a kind that we do not read.", "Replace it; the other clips can be used.", OWNER),
    "clip.too_short": ("A clip is too short", "There is too little in it to learn from.", "Replace it, or leave it out.", OWNER),
    "clip.caption_empty": ("A caption is empty", "A sound without words cannot be learned from.", "Write its caption in the list of clips.", OWNER),
    "clip.duplicate_row": ("A file is listed twice", "The first line was taken.", "Remove the other line, if it was not meant.", OWNER),
    "clip.duplicate_audio": ("Two files hold the same sound", "Both are kept, on the same side of the split.", "Exclude one, if it was not meant.", OWNER),
    "clip.name_differs": ("A name differs slightly", "The file was found although its name is written a little differently.", "", OWNER),
    "clip.not_finite": ("A file holds values that are no numbers", "Some samples are infinite or not a number, so it cannot be trained on.", "Replace it; the other clips can be used.", OWNER),
    "clip.silent": ("A clip is silent", "Its loudest moment is below what can be heard; it is left out of training.", "Include it in the list of clips if silence is meant.", OWNER),
    "clip.clipped": ("A clip is clipped", "Many of its samples are at the very limit, which sounds harsh, and the model learns that too.", "Replace it with a quieter recording, or leave it.", OWNER),
    "clip.dc_offset": ("A clip is off the zero line", "Its samples are shifted to one side, as some recorders do.", "Remove the offset with an audio editor, or leave it.", OWNER),
    "clip.truncated": ("A clip is cut short", "It is shorter than its own header says; what is there is used.", "Replace it if its end is missed.", OWNER),
    "clip.path_unsafe": ("A path leads outside", "The line names a file outside the dataset.", "Correct the path; the other clips can be used.", OWNER),
    "clip.changed": ("A sound was changed", "The file differs from the one that the run has frozen.", "Put the original file back, or make a new run (Clone with changes).", OWNER),
    "clip.invalid": ("A value is wrong", "The clip cannot be saved like this.", "Change the value that is named.", OWNER),
}  # fmt: skip
