-- Dead letters are read by queue, the newest first, however many jobs are kept beside them.
CREATE INDEX jobs_dead ON jobs (queue, id) WHERE state = 'discarded';
